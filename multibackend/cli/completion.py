"""Scripts that let a shell complete the commands, their flags and files."""

from __future__ import annotations

import argparse

__all__ = ["SHELLS", "completion_script"]

_BASH = """# multibackend completion bash: source <(multibackend completion bash)
_multibackend() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  elif [[ "$word" == -* ]]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [ -n "$words" ] || COMPREPLY=($(compgen -f -- "$word"))
}}
complete -o filenames -F _multibackend multibackend
"""
_BASH_CASE = '      {command}) words="{flags}" ;;'

# zsh runs the functions of bash
_ZSH = """#compdef multibackend
# multibackend completion zsh: source <(multibackend completion zsh)
autoload -U +X compinit && compinit -u
autoload -U +X bashcompinit && bashcompinit
{bash}"""

_FISH = """# multibackend completion fish: multibackend completion fish | source
complete -c multibackend -n __fish_use_subcommand -f -a "{commands}"
{cases}
"""
_FISH_CASE = "complete -c multibackend -n '__fish_seen_subcommand_from {command}' -l {flag}"

SHELLS = ("bash", "zsh", "fish")


def completion_script(shell: str, commands: dict[str, argparse.ArgumentParser]) -> str:
    """Return the script for a shell, one of `SHELLS`, that completes the commands and their flags.

    The flags of an experiment file are not among them: they are known once it has run.
    """
    flags = {name: _flags(parser) for name, parser in commands.items()}
    listed = " ".join(flags)
    if shell == "fish":
        cases = []
        for command, words in flags.items():
            cases += [_FISH_CASE.format(command=command, flag=word.removeprefix("--")) for word in words]
        return _FISH.format(commands=listed, cases="\n".join(cases))
    cases = [_BASH_CASE.format(command=command, flags=" ".join(words)) for command, words in flags.items()]
    bash = _BASH.format(commands=listed, cases="\n".join(cases))
    return _ZSH.format(bash=bash) if shell == "zsh" else bash


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    """The long flags of a command, but for those that its help hides."""
    words = []
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            words += [option for option in action.option_strings if option.startswith("--")]
    return words
