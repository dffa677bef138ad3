"""Losses of preference tuning, each as in its paper, from the log-probabilities of whole replies.

Shapes: B pairs (KTO: B replies). log-probabilities are natural, summed over a reply's tokens unless stated otherwise.
Every function returns (loss, chosen reward, rejected reward), each float32 [B]; rewards are without gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Figures = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Replies:
    """What the policy (and the reference) say of B replies. logps, reference: summed, [B]; tokens: of each reply, [B]."""

    logps: Tensor
    tokens: Tensor
    reference: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """Log-probability a token."""
        return self.logps / self.tokens

    @property
    def ratio(self) -> Tensor:
        """log pi(y|x) - log pi_ref(y|x)."""
        assert self.reference is not None
        return self.logps - self.reference


def dpo(chosen: Replies, rejected: Replies, *, beta: float, label_smoothing: float = 0.0) -> Figures:
    """-log sigmoid(beta (ratio_c - ratio_r)): Rafailov et al. 2023, arXiv 2305.18290, eq. 7.

    label_smoothing: the share of pairs thought to be the wrong way round (conservative DPO, Mitchell 2023).
    """
    margin = beta * (chosen.ratio - rejected.ratio)
    loss = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    return loss, (beta * chosen.ratio).detach(), (beta * rejected.ratio).detach()


def ipo(chosen: Replies, rejected: Replies, *, beta: float) -> Figures:
    """(h - 1 / (2 beta))^2, h the difference of the ratios a token: Azar et al. 2023, arXiv 2310.12036, eq. 17.

    The mean over a reply's tokens, as its authors confirmed to TRL, keeps the size of the loss independent of the length.
    """
    one, other = chosen.ratio / chosen.tokens, rejected.ratio / rejected.tokens
    return (one - other - 1 / (2 * beta)) ** 2, (beta * one).detach(), (beta * other).detach()


def orpo(chosen: Replies, rejected: Replies, *, beta: float) -> Figures:
    """NLL(chosen) + beta (-log sigmoid(log odds ratio)): Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7 (lambda: beta).

    odds = p / (1 - p), p the geometric mean of the token probabilities; NLL is a mean over the reply's tokens.
    """
    odds = chosen.mean - rejected.mean - (log_complement(chosen.mean) - log_complement(rejected.mean))
    loss = -chosen.mean - beta * logsigmoid(odds)
    return loss, (beta * chosen.mean).detach(), (beta * rejected.mean).detach()


def simpo(chosen: Replies, rejected: Replies, *, beta: float, margin: float) -> Figures:
    """-log sigmoid(beta (mean logp_c - mean logp_r) - margin): Meng et al. 2024, arXiv 2405.14734, eq. 6 (gamma: margin)."""
    loss = -logsigmoid(beta * (chosen.mean - rejected.mean) - margin)
    return loss, (beta * chosen.mean).detach(), (beta * rejected.mean).detach()


def kto(
    replies: Replies,
    desirable: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    reference_point: float = 0.0,
) -> Figures:
    """lambda_D (1 - sigmoid(beta (ratio - z))) of a desirable reply, lambda_U (1 - sigmoid(beta (z - ratio))) of another:
    Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8. desirable: bool [B].

    reference_point: z. The paper estimates it over the micro-batch, so that the loss of an example would depend on its
    neighbors and on the number of ranks; here it is a constant, 0, its value where training starts. (TRL calls that loss
    apo_zero_unpaired.) Rewards: NaN on the side that a reply is not of.
    """
    sign = torch.where(desirable, 1.0, -1.0)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    loss = weight * torch.sigmoid(-beta * sign * (replies.ratio - reference_point))
    rewards = (beta * replies.ratio).detach()
    nothing = torch.full_like(rewards, torch.nan)
    return loss, torch.where(desirable, rewards, nothing), torch.where(desirable, nothing, rewards)


def log_complement(logp: Tensor) -> Tensor:
    """log(1 - exp(logp)) for logp < 0, without cancellation (Maechler 2012)."""
    logp = logp.clamp(max=-1e-7)
    return torch.where(logp > -math.log(2), torch.log(-torch.expm1(logp)), torch.log1p(-torch.exp(logp)))
