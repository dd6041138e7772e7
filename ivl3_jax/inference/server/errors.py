"""Mistakes of a request, in the form in which OpenAI's clients expect them."""

from typing import Any

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """What a client is answered instead of what it asked for.

    Attributes:
        status: of HTTP. message: names the field, the value found, and what would be valid. param: the field, by its
            path in the body. code: for programs.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": _told(self.message), "type": kind, "param": _told(self.param), "code": self.code}}


def _told(text: str | None) -> str | None:
    """What a client wrote may have lone surrogates, which no answer can have."""
    return text and text.encode(errors="backslashreplace").decode()
