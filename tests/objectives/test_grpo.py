"""The GRPO family against naive loops, numbers by hand, and its properties."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from relay_lightning.objectives import grpo_loss
from relay_lightning.types import TokenSource, TrainBatch

STUDENT, TEACHER, PROMPT = TokenSource.STUDENT, TokenSource.TEACHER, TokenSource.PROMPT
LOSS_TYPES = ["grpo", "dapo", "bnpo", "dr_grpo", "cispo"]
MAX_COMPLETION_TOKENS = 9
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def make_batch(seed=0, num_rows=6, num_tokens=8, *, has_teacher=False, has_old=True, trains_teacher=False):
    """A random ragged batch in fp64 with one token of prompt, and policy log-probabilities that moved since."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, num_tokens + 1, (num_rows, 1), generator=generator)
    positions = torch.arange(num_tokens)
    is_real = positions < lengths
    source = torch.where(is_real & (positions > 0), STUDENT, PROMPT).to(torch.uint8)
    if has_teacher:
        source[(positions == 2) & is_real] = TEACHER
    loss_mask = source == STUDENT
    if trains_teacher:
        loss_mask |= source == TEACHER

    def draw(scale):
        return torch.randn(num_rows, num_tokens, generator=generator, dtype=torch.float64) * scale

    rollout = -draw(1.0).abs() - 0.1
    batch = TrainBatch(
        token_ids=torch.zeros(num_rows, num_tokens, dtype=torch.int64),
        attention_mask=is_real,
        loss_mask=loss_mask,
        token_source=source,
        advantages=torch.randn(num_rows, generator=generator, dtype=torch.float64),
        rollout_log_probs=torch.where(source == STUDENT, rollout, 0.0),
        old_log_probs=rollout + draw(0.3) if has_old else None,
        reference_log_probs=rollout + draw(0.5),
        num_step_loss_tokens=loss_mask.sum().double(),
        num_step_rollouts=torch.tensor(float(num_rows), dtype=torch.float64),
    )
    return batch, (rollout + draw(0.3)).requires_grad_()


def rows_of(batch, policy_log_probs, rows):
    """The micro-batch of some rows; the counts of the step stay."""
    parts = {
        name: getattr(batch, name)[rows]
        for name in batch.__slots__
        if isinstance(getattr(batch, name), torch.Tensor) and getattr(batch, name).ndim > 0
    }
    return replace(batch, **parts), policy_log_probs[rows]


def gradient(policy_log_probs, batch, **options):
    loss = grpo_loss(policy_log_probs, batch, max_completion_tokens=MAX_COMPLETION_TOKENS, **options).loss
    return torch.autograd.grad(loss, policy_log_probs)[0]


def naive_loss(policy, batch, *, loss_type, epsilon, epsilon_high, delta, beta, level):
    """TRL's formulas with Python floats, row by row and token by token; student tokens only."""
    row_sums, row_counts = [], []
    for row in range(policy.shape[0]):
        tokens = [token for token in range(policy.shape[1]) if batch.loss_mask[row, token]]
        log_ratios = {token: float(policy[row, token] - batch.old_log_probs[row, token]) for token in tokens}
        mean_log_ratio = sum(log_ratios.values()) / max(len(tokens), 1)
        advantage, total = float(batch.advantages[row]), 0.0
        for token in tokens:
            ratio = math.exp(log_ratios[token] if level == "token" else mean_log_ratio)
            if loss_type == "cispo":
                loss = -min(ratio, epsilon_high) * advantage * float(policy[row, token])
            else:
                clipped = min(max(ratio, 1 - epsilon), 1 + epsilon_high)
                bounded = ratio if delta is None else min(ratio, delta)
                loss = -min(bounded * advantage, clipped * advantage)
            difference = float(batch.reference_log_probs[row, token] - policy[row, token])
            total += loss + beta * (math.exp(difference) - difference - 1)
        row_sums.append(total)
        row_counts.append(len(tokens))
    if loss_type == "grpo":
        return sum(total / max(count, 1) for total, count in zip(row_sums, row_counts, strict=True)) / len(row_sums)
    if loss_type == "dr_grpo":
        return sum(row_sums) / (len(row_sums) * MAX_COMPLETION_TOKENS)
    return sum(row_sums) / sum(row_counts)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("epsilon", "delta", "beta"), [(0.2, None, 0.0), (0.1, 1.6, 0.04)])
def test_loss_equals_naive_loop(loss_type, level, epsilon, delta, beta):
    options = {"epsilon": epsilon, "epsilon_high": 2.0 if loss_type == "cispo" else 0.3, "delta": delta, "beta": beta}
    for seed in range(3):
        batch, policy = make_batch(seed)
        policy = policy.detach()
        ours = grpo_loss(
            policy,
            batch,
            loss_type=loss_type,
            importance_sampling_level=level,
            max_completion_tokens=MAX_COMPLETION_TOKENS,
            **options,
        ).loss
        naive = naive_loss(policy, batch, loss_type=loss_type, level=level, **options)
        assert float(ours) == pytest.approx(naive)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "cispo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_split_batch_gives_the_gradient_of_the_whole_batch(loss_type, level):
    """Three micro-batches of 1, 2 and 3 rows, averaged as Lightning and ddp average them, equal one batch of 6."""
    batch, policy = make_batch(has_teacher=True)
    options = {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.04, "epsilon_high": 1.5}
    whole = gradient(policy, batch, **options)
    split = torch.zeros_like(whole)
    for rows in (slice(0, 1), slice(1, 3), slice(3, 6)):
        micro_batch, micro_policy = rows_of(batch, policy.detach(), rows)
        split[rows] = gradient(micro_policy.requires_grad_(), micro_batch, num_micro_batches=3, **options) / 3
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(split, whole, **CLOSE)


def test_bnpo_is_the_mean_of_local_token_means():
    """By definition it depends on how rows are split: it equals the whole batch only for equal token counts."""
    batch, policy = make_batch()
    parts = []
    for rows in (slice(0, 1), slice(1, 6)):
        micro_batch, micro_policy = rows_of(batch, policy.detach(), rows)
        parts.append(gradient(micro_policy.requires_grad_(), micro_batch, loss_type="bnpo", num_micro_batches=2) / 2)
    split = torch.cat(parts)
    whole = gradient(policy, batch, loss_type="bnpo")
    counts = torch.tensor([batch.loss_mask[:1].sum(), *[batch.loss_mask[1:].sum()] * 5]).double().unsqueeze(1)
    torch.testing.assert_close(split * 2 * counts, whole * batch.loss_mask.sum(), **CLOSE)


def test_loss_of_a_step_is_the_mean_of_its_micro_batch_losses():
    batch, policy = make_batch()
    whole = grpo_loss(policy, batch, loss_type="dapo").loss
    parts = [
        grpo_loss(part_policy, part, loss_type="dapo", num_micro_batches=2).loss
        for part, part_policy in (rows_of(batch, policy, rows) for rows in (slice(0, 2), slice(2, 6)))
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, **CLOSE)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_teacher_tokens_get_zero_gradient_and_move_nothing_when_masked(loss_type, level):
    """The released code trained on what the teacher wrote. Here it may hold any value, even with a careless mask."""
    batch, policy = make_batch(has_teacher=True, trains_teacher=True)
    options = {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.04, "epsilon_high": 1.5}
    grad = gradient(policy, batch, **options)
    is_teacher = batch.token_source == TEACHER
    assert is_teacher.any()
    assert (grad[is_teacher] == 0.0).all()
    assert (grad[batch.token_source == STUDENT] != 0.0).any()
    moved = torch.where(is_teacher, -50.0, policy.detach()).requires_grad_()
    torch.testing.assert_close(gradient(moved, batch, **options), grad, **CLOSE)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("teacher_tokens", ["mask", "on_policy", "luffy"])
@pytest.mark.parametrize("garbage", [1e4, -torch.inf, torch.nan])
def test_values_outside_the_loss_mask_never_matter(loss_type, teacher_tokens, garbage):
    batch, policy = make_batch(has_teacher=True, trains_teacher=True)
    options = {
        "loss_type": loss_type,
        "teacher_tokens": teacher_tokens,
        "beta": 0.04,
        "epsilon_high": 1.5,
        "rollout_is_mode": "sequence_truncate",
        "max_completion_tokens": MAX_COMPLETION_TOKENS,
        "entropy": policy.detach().abs(),
    }
    clean = grpo_loss(policy, batch, **options)

    def spoil(tensor):
        return torch.where(batch.loss_mask, tensor.detach(), garbage)

    fields = ("rollout_log_probs", "old_log_probs", "reference_log_probs")
    spoilt_policy = spoil(policy).requires_grad_()
    spoilt_batch = replace(batch, **{field: spoil(getattr(batch, field)) for field in fields})
    spoilt = grpo_loss(spoilt_policy, spoilt_batch, **(options | {"entropy": spoil(options["entropy"])}))
    torch.testing.assert_close(spoilt.loss, clean.loss, **CLOSE)
    assert spoilt.metrics == clean.metrics
    clean.loss.backward()
    spoilt.loss.backward()
    torch.testing.assert_close(spoilt_policy.grad, policy.grad, **CLOSE)
    assert (policy.grad[~batch.loss_mask] == 0.0).all()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_padding_to_a_longer_row_changes_nothing(loss_type):
    batch, policy = make_batch()

    def pad(tensor):
        return torch.nn.functional.pad(tensor, (0, 5))

    wide = {name: pad(value) for name in batch.__slots__ if (value := getattr(batch, name)).ndim == 2}
    padded = pad(policy.detach()).requires_grad_()
    ours = gradient(padded, replace(batch, **wide), loss_type=loss_type, epsilon_high=1.5)
    torch.testing.assert_close(ours[:, :-5], gradient(policy, batch, loss_type=loss_type, epsilon_high=1.5), **CLOSE)
    assert (ours[:, -5:] == 0.0).all()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("teacher_tokens", ["mask", "on_policy", "luffy"])
def test_equal_rewards_give_no_update(loss_type, teacher_tokens):
    """Equal rewards are advantages of 0; without a KL term nothing pulls."""
    batch, policy = make_batch(has_teacher=True, trains_teacher=True)
    batch = replace(batch, advantages=torch.zeros(6, dtype=torch.float64))
    grad = gradient(policy, batch, loss_type=loss_type, teacher_tokens=teacher_tokens, epsilon_high=1.5)
    assert (grad == 0.0).all()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("teacher_tokens", ["mask", "on_policy", "luffy"])
def test_a_step_raises_the_log_prob_of_what_was_better(loss_type, teacher_tokens):
    """On-policy: descent makes tokens of a positive advantage likelier, those of a negative one less likely."""
    batch, policy = make_batch(has_teacher=True, trains_teacher=True)
    batch = replace(batch, old_log_probs=policy.detach())
    grad = gradient(policy, batch, loss_type=loss_type, teacher_tokens=teacher_tokens, epsilon_high=1.5)
    trained = batch.token_source == STUDENT if teacher_tokens == "mask" else batch.loss_mask
    direction = (-grad.sign() == batch.advantages.sign().unsqueeze(1)).logical_or(~trained)
    assert direction.all()


def one_token(policy, advantage, **fields):
    """A batch of a single student token whose old log-probability is 0, so that the ratio is exp(policy)."""
    zero = torch.zeros(1, 1, dtype=torch.float64)
    batch = TrainBatch(
        token_ids=zero.long(),
        attention_mask=zero == 0,
        loss_mask=zero == 0,
        token_source=torch.full((1, 1), STUDENT, dtype=torch.uint8),
        advantages=torch.tensor([advantage], dtype=torch.float64),
        rollout_log_probs=zero,
        old_log_probs=zero,
        reference_log_probs=None,
        num_step_loss_tokens=torch.tensor(1.0),
        num_step_rollouts=torch.tensor(1.0),
    )
    return replace(batch, **fields), torch.tensor([[policy]], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.25, 2.0, -2.5, -2.5),
        (1.5, 2.0, -2.6, 0.0),  # above 1 + 0.3: clipped
        (0.5, 2.0, -1.0, -1.0),  # a good token that became rare may still come back
        (0.5, -2.0, 1.6, 0.0),  # below 1 - 0.2: clipped
        (2.0, -2.0, 4.0, 4.0),
        (5.0, -2.0, 6.0, 0.0),  # above delta = 3: the dual clip
    ],
)
def test_clipping_by_hand(ratio, advantage, loss, slope):
    batch, policy = one_token(math.log(ratio), advantage)
    result = grpo_loss(policy, batch, epsilon=0.2, epsilon_high=0.3, delta=3.0)
    assert result.loss.item() == pytest.approx(loss)
    assert float(torch.autograd.grad(result.loss, policy)[0]) == pytest.approx(slope)
    is_low, is_high = float(slope == 0.0 and ratio < 1.0), float(slope == 0.0 and advantage > 0)
    assert float(result.metrics["clip_ratio/low_mean"]) == is_low
    assert float(result.metrics["clip_ratio/high_mean"]) == is_high
    assert float(result.metrics["clip_ratio/region_mean"]) == is_low + is_high


def test_delta_equals_dual_clip_of_ppo():
    """The released code clips the loss itself: max(surrogate, ...) capped at c |A| for a negative advantage."""
    for ratio in (0.3, 0.9, 1.2, 2.0, 3.5, 8.0):
        for advantage in (1.5, -1.5):
            batch, policy = one_token(math.log(ratio), advantage)
            surrogate = max(-ratio * advantage, -min(max(ratio, 0.8), 1.3) * advantage)
            dual = min(surrogate, -3.0 * advantage) if advantage < 0 else surrogate
            ours = grpo_loss(policy, batch, epsilon=0.2, epsilon_high=0.3, delta=3.0).loss
            assert float(ours) == pytest.approx(dual)


def test_cispo_keeps_the_gradient_where_grpo_clips_it():
    batch, policy = one_token(math.log(8.0), 2.0)
    result = grpo_loss(policy, batch, loss_type="cispo", epsilon_high=5.0)
    assert float(torch.autograd.grad(result.loss, policy)[0]) == pytest.approx(-10.0)
    assert float(result.metrics["cispo_clip_ratio"]) == 1.0


@pytest.mark.parametrize(
    ("kl_estimator", "value", "slope"),
    [("k1", -0.5, 1.0), ("k2", 0.125, -0.5), ("k3", math.exp(0.5) - 1.5, 1.0 - math.exp(0.5))],
)
def test_kl_by_hand(kl_estimator, value, slope):
    """log pi = -1.5 and log ref = -1, so d = 0.5; the advantage is 0, so that only beta times the KL is left."""
    batch, policy = one_token(-1.5, 0.0, reference_log_probs=torch.tensor([[-1.0]], dtype=torch.float64))
    result = grpo_loss(policy, batch, beta=0.1, kl_estimator=kl_estimator)
    assert float(result.metrics["kl"]) == pytest.approx(value)
    assert result.loss.item() == pytest.approx(0.1 * value)
    assert float(torch.autograd.grad(result.loss, policy)[0]) == pytest.approx(0.1 * slope)


def test_kl_is_logged_but_not_trained_when_beta_is_zero():
    batch, policy = one_token(-1.5, 0.0, reference_log_probs=torch.tensor([[-1.0]], dtype=torch.float64))
    result = grpo_loss(policy, batch)
    assert float(result.metrics["kl"]) == pytest.approx(math.exp(0.5) - 1.5)
    assert float(torch.autograd.grad(result.loss, policy)[0]) == 0.0


@pytest.mark.parametrize(
    ("mode", "weights"),
    [
        ("none", [1.0, 1.0, 1.0]),
        ("token_truncate", [2.0, 0.5, 3.0]),
        ("token_mask", [2.0, 0.5, 0.0]),
        ("sequence_truncate", [3.0, 3.0, 3.0]),
        ("sequence_mask", [0.0, 0.0, 0.0]),
    ],
)
def test_rollout_correction_by_hand(mode, weights):
    """pi_old / pi_rollout = 2, 1/2 and 8, their product 8; the policy has not moved, so the slope is -w A."""
    rollout = torch.full((1, 3), -3.0, dtype=torch.float64)
    old = rollout + torch.tensor([[2.0, 0.5, 8.0]], dtype=torch.float64).log()
    batch, _ = one_token(0.0, 1.0)
    batch = replace(
        batch,
        loss_mask=torch.ones(1, 3, dtype=torch.bool),
        token_source=torch.full((1, 3), STUDENT, dtype=torch.uint8),
        rollout_log_probs=rollout,
        old_log_probs=old,
    )
    policy = old.clone().requires_grad_()
    result = grpo_loss(policy, batch, rollout_is_mode=mode, rollout_is_clip_max=3.0)
    grad = torch.autograd.grad(result.loss, policy)[0]
    torch.testing.assert_close(-grad[0], torch.tensor(weights, dtype=torch.float64), **CLOSE)
    difference = result.metrics["sampling/sampling_logp_difference/mean"]
    assert float(difference) == pytest.approx((math.log(2) + math.log(2) + math.log(8)) / 3)
    assert float(result.metrics["sampling/sampling_logp_difference/max"]) == pytest.approx(math.log(8))
    if mode != "none":
        prefix = "sampling/importance_sampling_ratio"
        logged = [float(result.metrics[f"{prefix}/{name}"]) for name in ("mean", "max", "min")]
        assert logged == pytest.approx([sum(weights) / 3, max(weights), min(weights)])


def test_rollout_correction_weighs_student_tokens_only():
    batch, policy = make_batch(has_teacher=True, trains_teacher=True)
    is_teacher = batch.token_source == TEACHER
    options = {"teacher_tokens": "on_policy", "epsilon": 0.9, "epsilon_high": 9.0}
    plain = gradient(policy, batch, **options)
    corrected = gradient(policy, batch, rollout_is_mode="token_truncate", **options)
    torch.testing.assert_close(corrected[is_teacher], plain[is_teacher], **CLOSE)
    weight = (batch.old_log_probs - batch.rollout_log_probs).exp().clamp(max=3.0)
    is_student = batch.token_source == STUDENT
    torch.testing.assert_close(corrected[is_student], (plain * weight)[is_student], **CLOSE)


def test_teacher_tokens_count_like_the_students_when_on_policy():
    batch, policy = make_batch(has_teacher=True, trains_teacher=True)
    as_student = replace(batch, token_source=torch.where(batch.token_source == TEACHER, STUDENT, batch.token_source))
    ours = gradient(policy, batch, teacher_tokens="on_policy")
    torch.testing.assert_close(ours, gradient(policy, as_student), **CLOSE)


def test_teacher_tokens_have_ratio_one_when_nobody_stored_their_old_log_probs():
    """`rollout_log_probs` are 0 where the teacher wrote; a ratio against them would be the probability itself."""
    batch, policy = make_batch(has_teacher=True, trains_teacher=True, has_old=False)
    grad = gradient(policy, batch, teacher_tokens="on_policy")
    is_teacher = batch.token_source == TEACHER
    expected = (-batch.advantages.unsqueeze(1) / batch.num_step_loss_tokens).expand_as(grad)
    torch.testing.assert_close(grad[is_teacher], expected[is_teacher], **CLOSE)


def test_luffy_shapes_the_students_own_probability():
    """p = 0.1: f = 0.1 / 0.2 and d f / d log p = p * 0.1 / (p + 0.1)^2 = 0.25, unclipped."""
    teacher = torch.full((1, 1), TEACHER, dtype=torch.uint8)
    batch, policy = one_token(math.log(0.1), 2.0, token_source=teacher, old_log_probs=None)
    result = grpo_loss(policy, batch, teacher_tokens="luffy")
    assert result.loss.item() == pytest.approx(-0.5 * 2.0)
    assert float(torch.autograd.grad(result.loss, policy)[0]) == pytest.approx(-0.25 * 2.0)
    assert float(result.metrics["clip_ratio/region_mean"]) == 0.0


def test_luffy_leaves_student_tokens_as_they_are():
    batch, policy = make_batch(has_teacher=True, trains_teacher=True)
    is_student = batch.token_source == STUDENT
    for level in ("token", "sequence"):
        luffy = gradient(policy, batch, teacher_tokens="luffy", importance_sampling_level=level)
        masked = gradient(policy, batch, importance_sampling_level=level)
        torch.testing.assert_close(luffy[is_student], masked[is_student], **CLOSE)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_is_zero_with_a_gradient_when_no_token_may_be_trained(loss_type):
    batch, policy = make_batch()
    batch = replace(batch, loss_mask=torch.zeros_like(batch.loss_mask), num_step_loss_tokens=torch.tensor(0.0))
    result = grpo_loss(
        policy,
        batch,
        loss_type=loss_type,
        epsilon_high=1.5,
        rollout_is_mode="token_mask",
        max_completion_tokens=MAX_COMPLETION_TOKENS,
    )
    assert result.loss.item() == 0.0
    assert (torch.autograd.grad(result.loss, policy)[0] == 0.0).all()
    assert all(float(value) == 0.0 for value in result.metrics.values())


def test_gradient_stays_finite_when_the_policy_moved_absurdly_far():
    for advantage in (1.0, -1.0):
        batch, policy = one_token(200.0, advantage, reference_log_probs=torch.tensor([[300.0]]))
        policy32 = policy.detach().float().requires_grad_()
        for delta in (None, 3.0):
            result = grpo_loss(policy32, batch, delta=delta, beta=0.01)
            assert torch.isfinite(result.loss)
            assert torch.isfinite(torch.autograd.grad(result.loss, policy32)[0]).all()


def test_entropy_and_token_count_are_reported():
    batch, policy = make_batch(has_teacher=True)
    entropy = torch.rand(policy.shape)
    result = grpo_loss(policy, batch, entropy=entropy)
    assert float(result.metrics["entropy"]) == pytest.approx(float(entropy[batch.loss_mask].mean()), rel=1e-5)
    assert float(result.num_tokens["entropy"]) == float(batch.loss_mask.sum())
    assert not any(value.requires_grad for value in result.metrics.values())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"loss_type": "ppo"}, "loss_type"),
        ({"loss_type": "dr_grpo"}, "max_completion_tokens"),
        ({"loss_type": "cispo", "epsilon_high": 0.3}, "epsilon_high"),
        ({"epsilon": 1.5}, "epsilon"),
        ({"delta": 1.1}, "delta"),
        ({"kl_estimator": "k4"}, "kl_estimator"),
        ({"importance_sampling_level": "word"}, "importance_sampling_level"),
        ({"rollout_is_mode": "truncate"}, "rollout_is_mode"),
        ({"rollout_is_clip_max": 0.5}, "rollout_is_clip_max"),
        ({"teacher_tokens": "copy"}, "teacher_tokens"),
        ({"num_micro_batches": 0}, "num_micro_batches"),
        ({"beta": -0.1}, "beta"),
    ],
)
def test_error_names_the_option_when_it_is_wrong(options, name):
    batch, policy = make_batch()
    with pytest.raises(ValueError, match=name):
        grpo_loss(policy, batch, **options)


@pytest.mark.parametrize(
    ("fields", "options", "name"),
    [
        ({"reference_log_probs": None}, {"beta": 0.1}, "reference_log_probs"),
        ({"old_log_probs": None}, {"rollout_is_mode": "token_mask"}, "old_log_probs"),
        ({"loss_mask": torch.zeros(1, 2, dtype=torch.bool)}, {}, "policy_log_probs"),
    ],
)
def test_error_names_the_field_when_the_batch_lacks_it(fields, options, name):
    batch, policy = make_batch()
    with pytest.raises(ValueError, match=name):
        grpo_loss(policy, replace(batch, **fields), **options)
