"""Programs cut into tokens for a page to colour."""

from pygments.lexers import get_lexer_by_name
from pygments.token import Token

# The kinds of token that the page's style sheet knows, by Pygments's names for them and for all that is below these.
_KINDS = {
    Token.Keyword: "k",
    Token.Name.Builtin: "b",
    Token.Name.Function: "f",
    Token.Name.Class: "f",
    Token.Name.Decorator: "f",
    Token.Comment: "c",
    Token.Literal.String: "s",
    Token.Literal.Number: "n",
    Token.Operator.Word: "k",
}


def tokens_of(program: str, language: str) -> list[str]:
    """The kind of a token and its text by turns; the texts together are `program`, a kind is empty or one of `_KINDS`.

    Neighbours of one kind are one token.
    """
    flat: list[str] = []
    lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    for kind, text in lexer.get_tokens(program):
        name = next((_KINDS[parent] for parent in reversed(kind.split()) if parent in _KINDS), "")
        if flat and flat[-2] == name:
            flat[-1] += text
        else:
            flat += [name, text]
    return flat
