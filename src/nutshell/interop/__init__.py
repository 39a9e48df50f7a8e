"""Models out to other programs' formats and in from them: one file for each format (docs/interop.md)."""
