"""Proposals by Optuna's tree-structured Parzen estimator, in place of the built-in order.

A sampler that lives on would go another way after a restart. So each proposal has a study of its own: what
was made is added to it in order, and its sampler is seeded by (seed, number), so that the same journal gives
the same proposal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from edgeinfer.errors import OptionsError
from edgeinfer.lazy import module_of
from edgeinfer.tuning.candidate import Candidate

__all__ = ["Tried", "propose", "require_optuna"]

# Draws at random before the estimator has something to go by; the baselines count.
_STARTUP = 4


class Tried(NamedTuple):
    """A candidate that was made, and what it is worth (more is better)."""

    candidate: Candidate
    worth: float


def require_optuna() -> None:
    """Raise `OptionsError` where Optuna is not installed."""
    try:
        module_of("optuna")
    except ImportError as error:
        raise OptionsError(
            "The sampler 'optuna' needs a package that is not here.",
            where="tune, sampler",
            found=str(error),
            hint="pip install 'edgeinfer[optuna]'",
        ) from error


def propose(tried: Sequence[Tried], able: Sequence[Candidate], *, seed: int, number: int) -> int:
    """Return the place of the candidate to make next.

    Args:
        tried: What was made, in order.
        able: What may be made, the most promising first; at least one.
        seed: Of the run.
        number: Of the proposal.
    """
    optuna: Any = module_of("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    state = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=state, n_startup_trials=_STARTUP)
    )
    known = [_decisions(candidate) for candidate in (*able, *(each.candidate for each in tried))]
    spaces = {
        name: optuna.distributions.CategoricalDistribution(sorted({each[name] for each in known}))
        for name in known[0]
    }
    for each in tried:
        params = _decisions(each.candidate)
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=each.worth))
    wanted = study.ask(spaces).params
    # What it asks for may be made already, or be too slow: the nearest that may be made, in the usual order.
    agreeing = [
        sum(value == wanted[name] for name, value in _decisions(candidate).items()) for candidate in able
    ]
    return int(np.argmax(agreeing))


def _decisions(candidate: Candidate) -> dict[str, Any]:
    return {
        "pruned": f"{candidate.prune} {candidate.keep}" if candidate.prune else "",
        "precision": candidate.precision,
        "narrow": repr(candidate.narrow),
        "method": candidate.method,
        "effort": candidate.effort,
        "float_layers": len(candidate.keep_float),
    }
