#!/usr/bin/env bash
# The demo, as `make demo` runs it. Settings go behind it: recipes/demo/run.sh BUDGET=2min RUN=runs/short
cd "$(dirname "$0")/../.." && exec make demo "$@"
