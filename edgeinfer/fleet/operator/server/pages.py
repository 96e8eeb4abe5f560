"""The pages as HTML, rendered here; a few lines of script replace `main` when something changes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from edgeinfer.fleet.operator.outcomes import Counts, Outcome
from edgeinfer.fleet.operator.pictures import legend, stacked
from edgeinfer.fleet.operator.status import RolloutStatus

__all__ = [
    "actions_form",
    "audit_table",
    "document",
    "failure_table",
    "login_form",
    "report_table",
    "rollout_page",
    "table",
]

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;max-width:72rem;padding:0 1rem 3rem}
:root{color-scheme:light dark}
header{display:flex;gap:1.5rem;align-items:baseline;
border-bottom:1px solid #8885;padding:.6rem 0;flex-wrap:wrap}
header form{margin-left:auto}
h1{font-size:1.3rem;margin:1rem 0 .3rem} h2{font-size:1.05rem;margin:1.4rem 0 .3rem}
table{border-collapse:collapse;width:100%} td:first-child{white-space:nowrap} .scroll{overflow-x:auto}
th,td{text-align:left;vertical-align:top;padding:.2rem 1rem .2rem 0;border-bottom:1px solid #8883}
th{font-weight:600} .bar{width:100%;min-width:14rem;height:1.1rem;display:block}
.legend span{margin-right:1rem;white-space:nowrap}
.PASS{color:#00795a} .FAIL{color:#c24a00;font-weight:700} .state{font-weight:700}
code{overflow-wrap:anywhere} pre{margin:0;white-space:pre-wrap;font-size:.85em} button,input{font:inherit}
fieldset{border:1px solid #8885;margin:1rem 0}
.note{opacity:.75} .pictures svg{max-width:40rem;display:block}
@media(prefers-color-scheme:dark){.PASS{color:#3fc79f}.FAIL{color:#ff8a4c}}
"""
# Replaces what is shown when the server says that something changed, unless somebody is writing.
_SCRIPT = """
const live = document.getElementById('live');
const source = new EventSource('/events');
source.onopen = () => live.textContent = 'live';
source.onerror = () => live.textContent = 'not connected';
source.onmessage = async () => {
  const text = await (await fetch(location.href)).text();
  const fresh = new DOMParser().parseFromString(text, 'text/html').querySelector('main');
  const main = document.querySelector('main');
  if (fresh && !main.contains(document.activeElement)) main.replaceWith(fresh);
};
"""


def document(title: str, body: str, *, nonce: str, user: str, can_sign_in: bool) -> str:
    """Return a page."""
    if user:
        who = f"<form method='post' action='/logout'>{escape(user)} <button>Sign out</button></form>"
    else:
        who = "<form action='/login'><button>Sign in</button></form>" if can_sign_in else ""
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        "<header><strong>edgeinfer fleet</strong> <a href='/'>Rollouts</a> <a href='/devices'>Devices</a> "
        f"<span id='live' class='note'>static</span>{who}</header>"
        f"<main><h1>{escape(title)}</h1>{body}</main><script nonce='{nonce}'>{_SCRIPT}</script></body></html>"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "None.") -> str:
    """Return a table; a cell that is an `Html` is taken as it is, all others are escaped."""
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    if not body:
        return f"<p class='note'>{escape(empty)}</p>"
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def _cell(value: object) -> str:
    return value if isinstance(value, Html) else escape(str(value))


def when(at: int) -> str:
    """Return a time in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at))


def rollout_page(
    status: RolloutStatus,
    classes: Mapping[str, Mapping[str, int]],
    failures: Sequence[Mapping[str, Any]],
    pictures: Sequence[str],
    audit: Sequence[Mapping[str, Any]],
) -> str:
    """Return what a rollout's page shows."""
    record = status.record
    stages = []
    for number, (stage, counts) in enumerate(zip(record.specification.stages, status.stages, strict=True)):
        rate = counts.failure_rate
        stages.append(
            (
                number + 1,
                stage.describe(),
                counts.members,
                Html(_bar(counts)),
                "" if rate is None else f"{rate:.1%}",
                status.describe_stage(number),
            )
        )
    gates = [
        (number + 1, judgement.gate, _verdict(judgement.verdict.value), judgement.reason)
        for number, judgements in enumerate(status.judgements)
        for judgement in judgements
    ]
    by_class = [
        (
            name or "(none)",
            sum(counts.values()),
            Html(stacked(counts, sum(counts.values()))),
            ", ".join(f"{count} {outcome}" for outcome, count in counts.items()),
        )
        for name, counts in classes.items()
    ]
    parts = [
        f"<p>Release <code>{escape(record.release)}</code>: <b class='state'>{escape(status.state)}</b></p>",
        "<h2>Stages</h2>",
        table(("stage", "asked for", "devices", "outcomes", "failure rate", ""), stages),
        legend(),
        "<h2>Gates</h2>",
        table(("stage", "gate", "verdict", "why"), gates, empty="No stage was opened yet."),
        f"<div class='pictures'>{''.join(pictures)}</div>",
        "<h2>Devices by class</h2>",
        table(("class", "devices", "outcomes", ""), by_class, empty="The stages are not frozen yet."),
        "<h2>Failures</h2>",
        failure_table(failures),
        "<h2>Audit log</h2>",
        audit_table(audit),
    ]
    return "".join(parts)


def failure_table(failures: Sequence[Mapping[str, Any]]) -> str:
    """Return failures by code, with what a device said of it."""
    rows = [
        (
            row["outcome"],
            row["code"] or "(none)",
            row["devices"],
            Html(f"<a href='/devices/{escape(row['example'])}'>{escape(row['example'])}</a>"),
            Html(f"<pre>{escape(chr(10).join(row['log']))}</pre>"),
        )
        for row in failures
    ]
    return table(("outcome", "code", "devices", "for example", "what it said"), rows)


def audit_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return lines of the audit log."""
    rows = [
        (when(line["at"]), line["actor"], line["rollout"] or "", line["action"], line["reason"])
        for line in lines
    ]
    return table(("when", "who", "rollout", "what", "why"), rows)


def report_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Return what devices said."""
    rows = [
        (
            when(row["at"]),
            Html(f"<a href='/devices/{escape(row['device'])}'>{escape(row['device'])}</a>"),
            row["model"],
            row["phase"],
            row["code"],
            Html(f"<pre>{escape(chr(10).join(row['log']))}</pre>"),
        )
        for row in reports
    ]
    return table(("when", "device", "model", "phase", "code", "what it said"), rows)


def login_form(wrong: bool = False) -> str:
    """Return the form to sign in."""
    note = "<p class='FAIL'>That is not the token.</p>" if wrong else ""
    return (
        f"{note}<form method='post' action='/login'><p><label>Your name, for the audit log<br>"
        "<input name='name' required maxlength='64' autocomplete='username'></label></p><p><label>Token<br>"
        "<input name='token' type='password' required autocomplete='current-password'></label></p>"
        "<button>Sign in</button></form>"
    )


def actions_form(rollout: int, actions: Sequence[str], csrf: str) -> str:
    """Return the buttons of what can be done with a rollout now."""
    if not actions:
        return ""
    buttons = " ".join(
        f"<button formaction='/rollouts/{rollout}/{action}'>{action.capitalize()}</button>"
        for action in actions
    )
    return (
        "<form method='post'><fieldset><legend>Actions</legend>"
        f"<input type='hidden' name='csrf' value='{escape(csrf)}'>"
        f"<label>Reason <input name='reason' size='40' maxlength='500'></label> {buttons}</fieldset></form>"
    )


def _verdict(word: str) -> Html:
    return Html(f"<span class='{word}'>{word}</span>")


def _bar(counts: Counts) -> str:
    return stacked({outcome.value: counts.of(outcome) for outcome in Outcome}, counts.members)
