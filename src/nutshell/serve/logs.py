"""How the server logs: lines for people, or JSON for machines."""

import json
import logging
import sys


class JSONLines(logging.Formatter):
    """Each record as one JSON object; a request's has its id, status, seconds and tokens as fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps({**line, **getattr(record, "access", {})}, ensure_ascii=False)


def log_to_stderr(level: str, as_json: bool) -> None:
    """Our log lines go where uvicorn's go; as JSON, uvicorn's go where ours do."""
    ours = logging.getLogger("nutshell.serve")
    ours.setLevel(level.upper())
    if logging.getLogger().handlers or ours.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines() if as_json else logging.Formatter("%(levelname)s:     %(message)s"))
    ours.addHandler(handler)
    if as_json:
        logging.getLogger("uvicorn").addHandler(handler)
