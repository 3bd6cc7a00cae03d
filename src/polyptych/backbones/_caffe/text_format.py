"""The text format of protocol buffers: fields and messages, with the line of each.

Written from the grammar at https://protobuf.dev/reference/protobuf/textformat-spec/. Extensions and ``Any`` values are
refused, as no network description uses them. This parser does not know what the fields mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from polyptych.errors import InputError

DEEPEST = 64
"""Levels of messages within messages; a network description has four."""


class Word(NamedTuple):
    """An identifier used as a value: the name of an enum value, true, false, inf, nan."""

    text: str


Scalar = int | float | str | Word


@dataclass(frozen=True)
class Message:
    """The contents of a pair of braces, in order."""

    fields: tuple[Field, ...]
    line: int


@dataclass(frozen=True)
class Field:
    """One name and its value. A list ``name: [1, 2]`` gives one field for each of its values."""

    name: str
    value: Scalar | Message
    line: int


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


_TOKENS = re.compile(r"""
    (?P<space>[ \t\r\f\v]+|\#[^\n]*)
  | (?P<newline>\n)
  | (?P<number>(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?[fF]?)(?![\w.]))
  | (?P<word>[A-Za-z_]\w*)
  | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
  | (?P<sign>[-{}<>\[\]:;,])
  | (?P<bad>.)
""", re.VERBOSE | re.ASCII)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "\\": "\\", "'": "'",
            '"': '"', "?": "?"}
_CLOSING = {"{": "}", "<": ">"}


def parse(text: str, source: str) -> Message:
    """Parse a whole text as one message.

    Args:
        source: name of the file for errors.

    Raises:
        InputError: the text is not of this format; the message names the line.
    """
    parser = _Parser(list(_tokens(text, source)), source)
    return Message(tuple(parser.fields("", 0)), 1)


def _tokens(text: str, source: str) -> Iterator[_Token]:
    line = 1
    for match in _TOKENS.finditer(text):
        kind, found = str(match.lastgroup), match.group()
        if kind == "newline":
            line += 1
        elif kind == "bad":
            what = "a string that does not end on its line" if found in "\"'" else (
                f"a number that ends in letters, at {_shown(text[match.start():match.start() + 12])}"
                if found in "0123456789." else f"the character {found!r}")
            raise InputError(f"{source}:{line}", what, "the text format of protocol buffers", "fix that line")
        elif kind != "space":
            yield _Token(kind, found, line)
    yield _Token("end", "the end of the file", line)


class _Parser:
    """Recursive descent, one token ahead."""

    def __init__(self, tokens: list[_Token], source: str):
        self.tokens, self.source, self.position = tokens, source, 0

    @property
    def ahead(self) -> _Token:
        return self.tokens[self.position]

    def take(self) -> _Token:
        token = self.ahead
        self.position += token.kind != "end"
        return token

    def follows(self, text: str) -> bool:
        """Take a sign if it comes next."""
        found = self.ahead.kind == "sign" and self.ahead.text == text
        self.position += found
        return found

    def error(self, token: _Token, needs: str) -> InputError:
        return InputError(f"{self.source}:{token.line}", _shown(token.text), needs, "fix that line")

    def fields(self, closing: str, depth: int) -> list[Field]:
        """Everything up to ``closing``, or to the end of the text."""
        found: list[Field] = []
        while not (self.follows(closing) if closing else self.ahead.kind == "end"):
            name = self.take()
            if name.kind != "word":
                raise self.error(name, f"the name of a field{f' or {closing}' if closing else ''}")
            colon = self.follows(":")
            if not colon and self.ahead.text not in _CLOSING:
                raise self.error(self.ahead, f"a colon or a brace after '{name.text}'")
            found += [Field(name.text, value, line) for value, line in self.values(name.text, depth)]
            if not self.follows(","):
                self.follows(";")
        return found

    def values(self, name: str, depth: int) -> Iterator[tuple[Scalar | Message, int]]:
        if not self.follows("["):
            yield self.value(name, depth)
            return
        if self.follows("]"):
            return
        yield self.value(name, depth)
        while not self.follows("]"):
            if not self.follows(","):
                raise self.error(self.ahead, f"a comma or ] in the list of '{name}'")
            yield self.value(name, depth)

    def value(self, name: str, depth: int) -> tuple[Scalar | Message, int]:
        token = self.take()
        if token.kind == "sign" and token.text in _CLOSING:
            if depth >= DEEPEST:
                raise InputError(f"{self.source}:{token.line}", f"more than {DEEPEST} messages within each other",
                                 "fewer", "flatten the description")
            return Message(tuple(self.fields(_CLOSING[token.text], depth + 1)), token.line), token.line
        if token.kind == "string":
            parts = [self.unescaped(token)]
            while self.ahead.kind == "string":
                parts.append(self.unescaped(self.take()))
            return "".join(parts), token.line
        negative = token.kind == "sign" and token.text == "-"
        token = self.take() if negative else token
        if token.kind == "number":
            number = self.number(token)
            return (-number if negative else number), token.line
        if token.kind == "word":
            return Word(f"-{token.text}" if negative else token.text), token.line
        raise self.error(token, f"a value for '{name}'")

    def number(self, token: _Token) -> int | float:
        text = token.text
        if text[:2] in ("0x", "0X"):
            return int(text, 16)
        if text.isdigit():
            if len(text) > 1 and text[0] == "0":
                if not set(text) <= set("01234567"):
                    raise self.error(token, "an octal number, as it begins with 0")
                return int(text, 8)
            if len(text) > 20:
                raise self.error(token, "a number of 64 bits")
            return int(text)
        return float(text.rstrip("fF"))

    def unescaped(self, token: _Token) -> str:
        def replace(match: re.Match[str]) -> str:
            code = match.group(1)
            if code[0] in "xX" and len(code) > 1:
                return chr(int(code[1:], 16))
            if code[0] in "01234567":
                return chr(int(code, 8))
            if code not in _ESCAPES:
                raise self.error(token, f"a string without the unknown escape \\{code}")
            return _ESCAPES[code]

        return re.sub(r"\\([xX][0-9a-fA-F]{1,2}|[0-7]{1,3}|.)", replace, token.text[1:-1])


def _shown(text: str) -> str:
    """A token in a message of one line."""
    text = text if len(text) <= 40 else f"{text[:40]}..."
    return text if text == "the end of the file" else f"'{text}'" if text.isprintable() else repr(text)
