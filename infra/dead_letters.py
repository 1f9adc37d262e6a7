"""`headrace dead-letters`: what was refused, for people to look through, understand and mend."""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streaming.arrow_record import STREAM_STARTS
from streaming.dead_letters import DeadLetter, Filed, Letters, same_reason
from streaming.errors import ConfigError, EventRejected
from streaming.events import EventRules
from streaming.log import Log
from streaming.redrive import Mending, Outcome, Refusal, mended, records_of, redrive

_REASONS_SHOWN = 10
_AGO = re.compile(r"(\d+)\s*([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_NAME = re.compile(r"(?:(\d+)/)?(\d+)")


@dataclass(frozen=True)
class Choice:
    """Which letters: those of a reason (or field, or origin), not older than `since_us`."""

    reason: str | None = None
    since_us: int = 0

    def holds(self, filed: Filed) -> bool:
        letter = filed.letter
        text = f"{letter.origin} {letter.field} {letter.value} {letter.reason}".lower()
        return filed.logged_us >= self.since_us and (self.reason or "").lower() in text


def since(text: str | None, now_us: int) -> int:
    """A time in microseconds from `2h`, `3d` ago, or a date.

    Raises:
        ConfigError: it is neither.
    """
    if text is None:
        return 0
    if match := _AGO.fullmatch(text.strip()):
        return now_us - int(match[1]) * _SECONDS[match[2]] * 1_000_000
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--since {text!r}: write 30m, 2h or 3d, or a time like 2026-11-21T10:00:00Z"
        ) from None
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    return int(at.timestamp() * 1e6)


# -- list ----------------------------------------------------------------------------------


def list_letters(log: Log, choice: Choice, limit: int, console: Console) -> None:
    """The newest letters as a table, and how often each reason comes."""
    newest: deque[Filed] = deque(maxlen=limit)
    reasons: Counter[tuple[str, str]] = Counter()
    letters = Letters(log)
    for filed in letters.waiting():
        if choice.holds(filed):
            newest.append(filed)
            reasons[filed.letter.field, same_reason(filed.letter.reason)] += 1
    total = reasons.total()
    if total == 0:
        console.print(f"No dead letters wait.{_redriven(letters)}", highlight=False)
        return
    table = Table("letter", "when (UTC)", "from", title="Dead letters, oldest first")
    for column in ("field", "value", "reason"):
        table.add_column(column, overflow="fold")
    for filed in newest:
        letter = filed.letter
        table.add_row(
            filed.name,
            _time(filed.logged_us),
            escape(letter.origin),
            escape(letter.field),
            escape(letter.value),
            escape(letter.reason),
        )
    console.print(table)
    shown = f"the newest {len(newest):,} of {total:,}" if len(newest) < total else f"{total:,}"
    console.print(f"{shown} dead letters.{_redriven(letters)} By reason:", highlight=False)
    for (name, reason), count in reasons.most_common(_REASONS_SHOWN):
        console.print(f"{count:>8,}  {escape(name)}: {escape(reason)}", highlight=False)
    console.print(
        f"`headrace dead-letters show {newest[-1].name}` explains one, `redrive` mends them.",
        highlight=False,
    )


def json_letters(log: Log, choice: Choice) -> Iterator[str]:
    """Each letter as one JSON object, the oldest first."""
    for filed in Letters(log).waiting():
        if choice.holds(filed):
            yield msgspec.json.encode(
                {
                    "letter": filed.name,
                    "logged_us": filed.logged_us,
                    **msgspec.structs.asdict(filed.letter),
                }
            ).decode()


def _redriven(letters: Letters) -> str:
    return f" {len(letters.redriven):,} were re-driven." if letters.redriven else ""


def _time(at_us: int) -> str:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)
    return f"{at:%Y-%m-%d %H:%M:%S}"


# -- show ----------------------------------------------------------------------------------


def find(letters: Letters, name: str) -> Filed:
    """The letter called `0/17`, or `17` in partition 0.

    Raises:
        ConfigError: there is none.
    """
    match = _NAME.fullmatch(name)
    found = letters.find(int(match[1] or 0), int(match[2])) if match else None
    if found is None:
        raise ConfigError(
            f"there is no dead letter {name!r}: `headrace dead-letters list` names them, like 0/17"
        )
    return found


def show_letter(log: Log, name: str, rules: EventRules, console: Console) -> None:
    """One letter in full: the record as it was, the field at fault, and how to mend it."""
    letters = Letters(log)
    filed = find(letters, name)
    letter = filed.letter

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    say(f"[bold]dead letter {filed.name}[/]  {_time(filed.logged_us)} UTC")
    say(f"from    {escape(letter.origin)}")
    say(f"field   [bold red]{escape(letter.field)}[/]")
    say(f"value   {escape(letter.value)}")
    say(f"reason  {escape(letter.reason)}")
    if (filed.partition, filed.offset) in letters.redriven:
        say("[green]It was re-driven.[/]")
    say("")
    try:
        for record in records_of(letter):
            _show_record(record, letter.field, say)
    except EventRejected:
        say(f"the record, as it came ({len(letter.record):,} bytes): {escape(_bytes(letter))}")
    say("")
    for line in _advice(filed, rules):
        say(line)


def _show_record(record: dict[str, Any], at_fault: str, say: Any) -> None:
    names = list(record) if at_fault in record else [*record, at_fault]
    width = max(len(name) for name in names)
    for name in names:
        shown = escape(repr(record[name])) if name in record else "(missing)"
        mark, end = ("[bold red]> ", "[/]") if name == at_fault else ("  ", "")
        say(f"{mark}{escape(name):<{width}}  {shown}{end}")


def _bytes(letter: DeadLetter) -> str:
    start = letter.record[:400]
    return repr(start) if start.startswith(STREAM_STARTS) else start.decode(errors="replace")


def _advice(filed: Filed, rules: EventRules) -> Iterator[str]:
    letter = filed.letter
    command = f"headrace dead-letters redrive {filed.name}"
    try:
        mended(filed, Mending(), rules, time.time_ns() // 1000)
    except EventRejected as error:
        if letter.field in ("event", "row", "record"):
            yield "It cannot be mended here: send it again as it should be."
        elif "unknown field" in error.reason:
            yield f"Mend it: {command} --map FIELD={letter.field}, or --drop {letter.field}"
        else:
            yield f"Mend it: {command} --set {error.field}=VALUE"
        if letter.field == "kind":
            yield f"or add the kind to \\[events.kinds] of a recipe, and: {command} --recipe FILE"
    else:
        yield f"It keeps the rules now: {command}"


# -- redrive -------------------------------------------------------------------------------


def choose(letters: Letters, names: list[str], choice: Choice) -> Iterator[Filed]:
    """The letters that were named, or all that the choice holds; none that was re-driven."""
    if not names:
        yield from filter(choice.holds, letters.waiting())
        return
    for filed in (find(letters, name) for name in dict.fromkeys(names)):
        if (filed.partition, filed.offset) not in letters.redriven:
            yield filed


def redrive_letters(
    log: Log, names: list[str], choice: Choice, mending: Mending, rules: EventRules
) -> Outcome:
    """Puts what passes now into the log, each letter once."""
    letters = Letters(log)
    return redrive(letters, choose(letters, names, choice), mending, rules, time.time_ns() // 1000)


def rehearse(
    log: Log, names: list[str], choice: Choice, mending: Mending, rules: EventRules
) -> Outcome:
    """As `redrive_letters`, but nothing is appended."""
    letters = Letters(log)
    done, events = 0, 0
    refused = []
    for filed in choose(letters, names, choice):
        try:
            events += len(mended(filed, mending, rules, time.time_ns() // 1000))
            done += 1
        except EventRejected as error:
            refused.append(Refusal(filed, error))
    return Outcome(done, events, refused)


def show_outcome(outcome: Outcome, console: Console, *, dry: bool) -> None:
    """What went in again, and what is still refused."""
    verb = "would be re-driven" if dry else "re-driven"
    console.print(
        f"{verb}: {outcome.letters:,} (events: {outcome.events:,}); still refused:"
        f" {len(outcome.refused):,}",
        highlight=False,
    )
    if not outcome.refused:
        return
    reasons = Counter((one.error.field, one.error.reason) for one in outcome.refused)
    first = {(o.error.field, o.error.reason): o.filed for o in reversed(outcome.refused)}
    table = Table("letters", "field", "reason", "for example", title="Still refused")
    for why, count in reasons.most_common(_REASONS_SHOWN):
        filed = first[why]
        example = f"{filed.name} ({filed.letter.origin})"
        table.add_row(f"{count:,}", escape(why[0]), escape(why[1]), escape(example))
    console.print(table)
