"""The objective's terms against arithmetic done by hand (rewards already carry beta)."""

import itertools
import math

import pytest
import torch

from listwise_preference.training.losses import (
    TERMS,
    LossTerm,
    anchor_loss,
    dpo_loss,
    plackett_luce_loss,
    tied_plackett_luce_loss,
)
from listwise_preference.training.objective import PRESETS, Objective, compare, metrics, read_weights


def test_plackett_luce_worked_by_hand() -> None:
    """Scores 2, 1, 0, -1, -2: log(1 + e^-1 + e^-2 + e^-3 + e^-4) = 0.4519, then 0.4402, 0.4076, 0.3133."""
    terms = [math.log(sum(math.exp(-j) for j in range(n))) for n in (5, 4, 3, 2)]
    assert [round(term, 4) for term in terms] == [0.4519, 0.4402, 0.4076, 0.3133]
    loss = plackett_luce_loss(torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0]]))
    assert loss.item() == pytest.approx(sum(terms), abs=1e-6)
    assert loss.item() == pytest.approx(1.6130, abs=1e-4)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7])
def test_equal_scores_cost_the_logarithm_of_the_number_of_orders(length: int) -> None:
    loss = plackett_luce_loss(torch.full((2, length), 3.7, dtype=torch.float64))
    assert loss.tolist() == pytest.approx([math.log(math.factorial(length))] * 2)


def test_probabilities_of_all_orders_sum_to_one() -> None:
    scores = torch.tensor([0.3, -1.2, 2.5, 0.0], dtype=torch.float64)
    orders = torch.stack([scores[list(order)] for order in itertools.permutations(range(4))])
    assert plackett_luce_loss(orders).neg().exp().sum().item() == pytest.approx(1.0)


def test_two_images_are_dpo_of_their_difference() -> None:
    scores = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plackett_luce_loss(scores), dpo_loss(scores[:, 0], scores[:, 1]))


def test_only_differences_of_scores_count() -> None:
    scores = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(plackett_luce_loss(scores), plackett_luce_loss(scores + 11.0))


@pytest.mark.parametrize("order", [1, -1])
def test_scores_of_200_are_finite_with_finite_gradients(order: int) -> None:
    """exp(200) is infinite in float32: the right order costs 0, the wrong one 100 + 200 + 300 + 400."""
    scores = (order * torch.tensor([[200.0, 100.0, 0.0, -100.0, -200.0]])).requires_grad_()
    loss = plackett_luce_loss(scores)
    loss.sum().backward()
    assert scores.grad is not None
    assert loss.item() == pytest.approx(0.0 if order == 1 else 1000.0)
    assert torch.isfinite(scores.grad).all()
    assert torch.isfinite(dpo_loss(scores[:, 0], scores[:, -1])).all()


def test_gradient_of_the_list_at_equal_scores() -> None:
    """d/dS_1 = 1/L - 1: of the first suffix alone, and it is the only one that holds S_1."""
    scores = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    plackett_luce_loss(scores).sum().backward()
    assert scores.grad is not None
    expected = [sum(1 / (5 - k) for k in range(min(j, 3) + 1)) - (1 if j < 4 else 0) for j in range(5)]
    assert scores.grad[0].tolist() == pytest.approx(expected)


def test_dpo_and_anchor_worked_by_hand() -> None:
    """-log sigmoid(1) = log(1 + e^-1) = 0.3133; at 0 both are log 2 = 0.6931."""
    one, zero = torch.ones(1), torch.zeros(1)
    assert dpo_loss(one, zero).item() == pytest.approx(0.31326, abs=1e-5)
    assert dpo_loss(zero, zero).item() == pytest.approx(math.log(2))
    assert anchor_loss(one, delta=1.0).item() == pytest.approx(math.log(2))
    assert anchor_loss(one).item() == pytest.approx(0.31326, abs=1e-5)


def test_a_policy_equal_to_its_reference_costs_two_logs_of_two_and_the_log_of_the_orders() -> None:
    logps = torch.tensor([[-30.0, -40.0, -31.0, -32.0, -33.0, -34.0]])
    loss = compare(Objective(), logps, logps).loss_B
    assert loss.item() == pytest.approx(0.6931 + 0.6931 + 4.7875, abs=1e-4)


def test_answers_are_taken_apart_in_their_order() -> None:
    """Chosen on image 1, rejected, chosen on images 2 and 3: log-ratios 3, 1, 2, 0; beta 0.5."""
    policy, reference = torch.tensor([[-1.0, -9.0, -5.0, -7.0]]), torch.tensor([[-4.0, -10.0, -7.0, -7.0]])
    outcome = compare(Objective(beta=0.5), policy, reference)
    assert outcome.rewards.rejected_B.tolist() == [0.5]
    assert outcome.rewards.chosen_BL.tolist() == [[1.5, 1.0, 0.0]]
    expected = math.log1p(math.exp(-1.0)) + math.log1p(math.exp(-1.5))
    expected += math.log1p(math.exp(-0.5) + math.exp(-1.5)) + math.log1p(math.exp(-1.0))
    assert outcome.loss_B.item() == pytest.approx(expected)


def test_the_margin_list_ranks_images_by_chosen_minus_rejected() -> None:
    """Log-ratios, beta 0.5: chosen 4, 3, 1 on three images, rejected 0, 3, 5; margins 2, 0, -2 after beta.

    log(1 + e^-2 + e^-4) = 0.1429 and log(1 + e^-2) = 0.1269. The order of completions is chosen, rejected on image 1,
    chosen on 2 and 3, rejected on 2 and 3.
    """
    policy = torch.tensor([[4.0, 0.0, 3.0, 1.0, 3.0, 5.0]])
    objective = Objective({"margin_list": 1.0}, beta=0.5)
    assert objective.uses_list and objective.uses_rejected and objective.uses_rejected_on_all
    outcome = compare(objective, policy, torch.zeros_like(policy))
    assert outcome.rewards.chosen_BL.tolist() == [[2.0, 1.5, 0.5]]
    assert outcome.rewards.rejected_BL.tolist() == [[0.0, 1.5, 2.5]]
    assert outcome.loss_B.item() == pytest.approx(0.1429 + 0.1269, abs=1e-4)
    assert metrics(objective, outcome)["rewards_image/level_3"].item() == 0.5


def test_what_only_an_image_changes_cancels_in_the_margin_list() -> None:
    """Both responses become likelier by 7 nats on image 2: the list of the chosen one changes, the margins do not."""
    policy = torch.tensor([[-9.0, -9.5, -8.0, -11.0, -10.0, -10.5]], dtype=torch.float64)
    reference = torch.full_like(policy, -10.0)
    shifted = policy + torch.tensor([[0.0, 0.0, 7.0, 0.0, 7.0, 0.0]])
    margin = Objective({"margin_list": 1.0}, beta=1.0)
    assert compare(margin, policy, reference).loss_B.item() == pytest.approx(
        compare(margin, shifted, reference).loss_B.item()
    )
    both = Objective({"listwise": 1.0, "margin_list": 1.0}, beta=1.0)
    before, after = (compare(both, values, reference).terms["listwise"].item() for values in (policy, shifted))
    assert after > before + 6


def test_a_tie_is_the_sum_of_both_orders() -> None:
    """exp(S) = 3, 2, 1: 3/6 * 2/3 = 1/3 one way, 2/6 * 3/4 = 1/4 the other; together 7/12."""
    scores = torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64).log()
    assert tied_plackett_luce_loss(scores).item() == pytest.approx(math.log(12 / 7))
    assert tied_plackett_luce_loss(scores[:, [1, 0, 2]]).item() == pytest.approx(math.log(12 / 7))
    # two images that are tied are always in one of their two orders
    assert tied_plackett_luce_loss(scores[:, :2]).item() == pytest.approx(0.0)
    # 24 equally likely orders of four, of which two are asked for
    assert tied_plackett_luce_loss(torch.zeros(1, 4)).item() == pytest.approx(math.log(12))
    outcome = compare(Objective({"tied_list": 1.0}, beta=1.0), scores, torch.zeros_like(scores))
    assert outcome.loss_B.item() == pytest.approx(math.log(12 / 7), abs=1e-6)


def test_weights_scale_their_terms_and_zero_removes_them() -> None:
    policy, reference = torch.tensor([[-1.0, -5.0, -7.0]]), torch.tensor([[-4.0, -7.0, -7.0]])
    objective = Objective({"dpo": 0.0, "anchor": 2.0, "listwise": 0.5}, beta=0.5)
    outcome = compare(objective, policy, reference)
    assert outcome.terms.keys() == {"anchor", "listwise"} and not outcome.rewards.with_rejected
    listwise = math.log1p(math.exp(-0.5) + math.exp(-1.5)) + math.log1p(math.exp(-1.0))
    assert outcome.loss_B.item() == pytest.approx(2.0 * math.log1p(math.exp(-1.5)) + 0.5 * listwise)


def test_rank_metrics_by_hand() -> None:
    """Rewards 4, 5, 3, 1: one of three neighbours is out of order, one of six pairs; the first is not on top."""
    policy = torch.tensor([[4.0, 0.0, 5.0, 3.0, 1.0]])
    zero = torch.zeros_like(policy)
    objective = Objective(beta=1.0)
    values = metrics(objective, compare(objective, policy, zero))
    assert values["list/adjacent_accuracy"].item() == pytest.approx(2 / 3)
    assert values["list/kendall_tau"].item() == pytest.approx((5 - 1) / 6)
    assert values["list/top1"].item() == 0.0
    assert values["rewards/accuracies"].item() == 1.0
    assert values["rewards/margins"].item() == 4.0
    assert [values[f"rewards_image/level_{k}"].item() for k in (1, 2, 3, 4)] == [4.0, 5.0, 3.0, 1.0]


def test_rewards_equal_within_rounding_count_one_half() -> None:
    """A policy equal to its reference but for the last bits of sums of 300 nats: nothing is above anything."""
    reference = torch.full((1, 5), -300.0)
    policy = reference + torch.tensor([[1.0, -1.0, -2.0, 2.0, 0.0]]) * 6e-5
    values = metrics(Objective(), compare(Objective(), policy, reference))
    assert values["rewards/margins"].item() > 0
    assert values["rewards/accuracies"].item() == 0.5
    assert values["list/adjacent_accuracy"].item() == 0.5
    assert values["list/top1"].item() == 0.25  # one of four that are equally far ahead
    assert values["list/kendall_tau"].item() == 0.0
    ahead = policy + torch.tensor([[0.1, 0.0, 0.1, 0.0, 0.0]])  # two share the top, and two follow
    values = metrics(Objective(), compare(Objective(), ahead, reference))
    assert values["list/top1"].item() == 0.5
    assert values["list/adjacent_accuracy"].item() == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert values["list/kendall_tau"].item() == pytest.approx(4 / 6)


@pytest.mark.parametrize("weights", [{"dpo": -1.0, "anchor": 1.0}, {"dpo": 0.0, "anchor": 0.0}, {"lisp": 1.0}])
def test_weights_without_meaning_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"loss weights|no such loss term: lisp"):
        Objective(weights)


def test_a_term_of_ones_own_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLiC's hinge (arXiv:2305.10425) on the rewards' margin: log-ratios 3 and 1 at beta 0.25 leave 1 - 0.5."""
    hinge = LossTerm(lambda r: (1 - (r.chosen_B - r.rejected_B)).relu(), needs_rejected=True)
    monkeypatch.setitem(TERMS, "hinge", hinge)
    weights = read_weights(["dpo=0", "anchor=0", "listwise=0", "hinge=0.5"], PRESETS["lpoi"].weights)
    objective = Objective(weights, beta=0.25)
    assert objective.uses_rejected and not objective.uses_list
    outcome = compare(objective, torch.tensor([[-1.0, -9.0]]), torch.tensor([[-4.0, -10.0]]))
    assert outcome.terms["hinge"].tolist() == [0.5] and outcome.loss_B.tolist() == [0.25]
    assert metrics(objective, outcome)["loss_hinge"].tolist() == [0.5]


def test_smoothed_labels_are_conservative_dpo() -> None:
    """A margin of ln 3 is a preference of 3/4: 0.9 * ln(4/3) + 0.1 * ln(4)."""
    chosen, rejected = torch.tensor([math.log(3)]), torch.zeros(1)
    expected = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    assert dpo_loss(chosen, rejected, 0.1).item() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(dpo_loss(chosen, rejected, 0.0), dpo_loss(chosen, rejected))


def test_ipo_is_the_distance_of_a_margin_from_its_aim() -> None:
    """Log-ratios 3 and 1 at beta 0.5: h = 2, its aim 1 / (2 * 0.5) = 1, and (2 - 1)^2 = 1; 0 at the aim itself."""
    objective = Objective({"ipo": 1.0}, beta=0.5)
    assert objective.uses_rejected and not objective.uses_list
    reference = torch.tensor([[-4.0, -10.0]])
    assert compare(objective, torch.tensor([[-1.0, -9.0]]), reference).terms["ipo"].tolist() == [1.0]
    assert compare(objective, torch.tensor([[-2.0, -9.0]]), reference).terms["ipo"].tolist() == [0.0]
    assert compare(objective, reference, reference).terms["ipo"].tolist() == [1.0]  # aim squared, before the first step


def test_sft_is_the_mean_over_the_chosen_responses_tokens() -> None:
    """-log pi of -12 over 4 tokens is 3; neither the rejected response nor the reference has a say."""
    objective = Objective({"sft": 0.5})
    assert not objective.uses_rejected and not objective.uses_list
    lengths = torch.tensor([[4]])
    outcome = compare(objective, torch.tensor([[-12.0]]), torch.tensor([[-7.0]]), lengths)
    assert outcome.terms["sft"].tolist() == [3.0] and outcome.loss_B.tolist() == [1.5]
