# Every target sets up what it needs. `make demo` is the place to begin.
RUN    ?= runs/demo
BUDGET ?= 9min
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# As one word of the shell, whatever is in it: RUN="runs/my run", RUN="it's".
quoted  = '$(subst ','\'',$(1))'
RUST   := $(wildcard rust/src/*.rs rust/src/*/*.rs rust/src/*/*/*.rs) rust/Cargo.toml
PYTEST  = $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: help setup demo chat serve test test-all lint format bench fuzz wheel clean

help:
	@echo "make demo      train a chat model end to end on this machine ($(BUDGET); BUDGET=2min for a quick look)"
	@echo "make chat      talk to it in the terminal"
	@echo "make serve     talk to it in the browser, http://localhost:8000"
	@echo "make test      all tests but the slow ones;  make test-all: those too"
	@echo "make lint      ruff, mypy, clippy, rustfmt;  make format: put code in form"
	@echo "make bench     the benchmarks behind the README's figures"
	@echo "make fuzz      generated tokenizers, texts and files: the Rust core for a minute, hypothesis with many more examples"
	@echo "make wheel     dist/*.whl;  make clean: remove what was built (runs/ stays)"

# uv is used where it is; else it goes into an environment of its own.
UV := $(shell command -v uv 2>/dev/null || echo .venv-uv/bin/uv)

.venv-uv/bin/uv:
	$(PYTHON) -m venv .venv-uv || { echo "python3 -m venv failed. On Debian and Ubuntu: apt-get install python3-venv"; exit 2; }
	.venv-uv/bin/pip install -q uv

$(BIN)/python: | $(filter .venv-uv/%,$(UV))
	@command -v cargo >/dev/null || { echo "cargo is missing: tokenizer and decoder are Rust (1.89 or newer). Install it with rustup."; exit 2; }
	$(UV) venv -q --python $(PYTHON) $(VENV)

$(VENV)/.installed: pyproject.toml $(RUST) | $(BIN)/python
	$(UV) pip install -q --python $(BIN)/python -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(UV) pip install -q --python $(BIN)/python -e '.[dev]'
	@touch $@

setup: $(VENV)/.installed

demo: setup
	$(BIN)/nutshell demo --out $(call quoted,$(RUN)) --budget $(call quoted,$(BUDGET))

chat: setup
	$(BIN)/nutshell chat $(call quoted,$(RUN))

serve: setup
	$(BIN)/nutshell serve $(call quoted,$(RUN))

test: $(VENV)/.installed-dev
	cargo test -q --manifest-path rust/Cargo.toml
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.installed-dev
	cargo test -q --manifest-path rust/Cargo.toml
	$(PYTEST)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	cargo fmt --manifest-path rust/Cargo.toml --check
	cargo clippy -q --manifest-path rust/Cargo.toml --all-targets --all-features -- -D warnings

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks
	cargo fmt --manifest-path rust/Cargo.toml

bench: $(VENV)/.installed-dev
	$(UV) pip install -q --python $(BIN)/python -e '.[bench]'
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/tokenizer.py
	$(BIN)/python benchmarks/loss_memory.py
	@echo "beside nanochat: benchmarks/pretraining.py and benchmarks/loader.py --nanochat FOLDER --data SHARDS"

fuzz: $(VENV)/.installed-dev
	NUTSHELL_FUZZ_SECONDS=60 cargo test -q --manifest-path rust/Cargo.toml --test fuzz
	HYPOTHESIS_PROFILE=fuzz $(PYTEST) -m "not browser" tests/tokenizer tests/infer tests/data

wheel: $(VENV)/.installed-dev
	$(BIN)/maturin build --release --out dist

clean:
	rm -rf $(VENV) .venv-uv rust/target dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f src/nutshell/tokenizer/_bpe.*.so
