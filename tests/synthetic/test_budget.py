import dataclasses
import json
import random
from fractions import Fraction

import pytest

from e5jax.errors import UserError
from e5jax.synthetic import budget as budgets
from e5jax.synthetic.budget import NOTHING, Budget, CapReached, Spent, dollars, price_of, read_prices
from e5jax.synthetic.config import CapsConfig
from tests.synthetic.asking import PRICES, answer, bill, request


def make(spent=NOTHING, batch=False, **caps) -> Budget:
    return Budget(CapsConfig(**caps), PRICES, "m", batch=batch, spent=spent)


def test_an_answer_costs_its_tokens_at_their_price():
    budget = make()
    said = dataclasses.replace(answer(request(0)), prompt_tokens=7, answer_tokens=3)
    assert budget.settle(budget.reserve(request(0)), said) == Spent(7 * 1_000 + 3 * 10_000, 10, 1)
    assert budget.spent == Spent(37_000, 10, 1)
    assert budget.in_flight == NOTHING


def test_a_batch_costs_half():
    budget = make(batch=True)
    said = dataclasses.replace(answer(request(0)), prompt_tokens=7, answer_tokens=3)
    assert budget.settle(budget.reserve(request(0)), said).nanodollars == 18_500


def test_a_fraction_of_a_nanodollar_counts_as_a_whole_one():
    prices = {"m": {"prompt": Fraction("0.0001"), "answer": Fraction(0), "batch": Fraction(1)}}
    budget = Budget(CapsConfig(), prices, "m", batch=False, spent=NOTHING)
    said = dataclasses.replace(answer(request(0)), prompt_tokens=1, answer_tokens=0)
    assert budget.settle(budget.reserve(request(0)), said).nanodollars == 1


def test_the_worst_case_is_a_token_a_byte_and_the_longest_answer():
    worst = make().worst_case(request(0))
    prompt = len("Write sentence 0 in Ελληνικά.".encode()) + len('{"type": "object"}') + budgets.WRAPPING_TOKENS
    assert worst == Spent(prompt * 1_000 + 1_000 * 10_000, prompt + 1_000, 1)


def test_a_prompt_with_half_an_emoji_has_a_worst_case():
    assert make().worst_case(dataclasses.replace(request(0), prompt="\ud83d")).tokens > 1_000


@pytest.mark.parametrize(
    ("caps", "words"),
    [
        ({"dollars": 0.02}, r"cap of \$0\.0200 .*\$0\.0000 spent"),
        ({"tokens": 2_000}, "cap of 2,000 tokens"),
        ({"requests": 1}, "cap of 1 requests"),
    ],
)
def test_each_cap_counts_what_is_in_flight_at_its_worst(caps, words):
    budget = make(**caps)
    first = budget.reserve(request(0))
    with pytest.raises(CapReached, match=words):
        budget.reserve(request(1))
    budget.cancel(first)
    budget.reserve(request(1))


def test_what_was_spent_before_counts():
    worst = make().worst_case(request(0))
    make(spent=Spent(10**9 - worst.nanodollars, 0, 0), dollars=1.0).reserve(request(0))
    with pytest.raises(CapReached):
        make(spent=Spent(10**9 - worst.nanodollars + 1, 0, 0), dollars=1.0).reserve(request(0))


def test_a_cap_is_the_decimal_number_that_was_typed():
    assert make(dollars=0.1).caps["nanodollars"] == 100_000_000
    assert make(dollars=2.01).caps["nanodollars"] == 2_010_000_000  # 2.01 * 1e9 in floats is 2009999999.9999998


def test_a_try_without_an_answer_stays_at_its_worst():
    budget = make()
    reservation = budget.reserve(request(0))
    assert budget.settle(reservation, None) == reservation.worst == budget.spent


def test_an_answer_that_does_not_say_what_it_used_stays_at_its_worst():
    budget = make()
    reservation = budget.reserve(request(0))
    silent = dataclasses.replace(answer(request(0)), prompt_tokens=0, answer_tokens=0)
    assert budget.settle(reservation, silent) == reservation.worst


def test_a_try_that_was_turned_away_is_a_request_that_costs_nothing():
    budget = make()
    assert budget.release(budget.reserve(request(0))) == Spent(0, 0, 1) == budget.spent


def test_a_reservation_is_settled_once():
    budget = make()
    reservation = budget.reserve(request(0))
    budget.release(reservation)
    with pytest.raises(KeyError):
        budget.settle(reservation, None)


def test_no_order_of_events_passes_the_cap():
    draw, budget, open_, billed = random.Random(0), make(dollars=1.0), [], 0
    for number in range(3_000):
        try:
            open_.append((budget.reserve(request(number)), answer(request(number))))
        except CapReached:
            if not open_:
                break
        if len(open_) > 64 or (open_ and draw.random() < 0.4):
            reservation, said = open_.pop(draw.randrange(len(open_)))
            lost = draw.random() < 0.1
            billed += bill(said)
            budget.settle(reservation, None if lost else said)
        assert billed + sum(bill(said) for _, said in open_) <= 10**9
    assert billed > 0.85e9  # what is lost counts at its worst


def test_the_table_of_prices_is_exact_and_knows_the_default_model():
    assert price_of(read_prices(None), "gemini-2.5-flash") == {
        "prompt": Fraction(3, 10),
        "answer": Fraction(5, 2),
        "batch": Fraction(1, 2),
    }


def test_a_file_of_prices_adds_to_the_table_and_wins(tmp_path):
    path = tmp_path / "prices.json"
    path.write_text('{"gpt-4o": {"prompt": 9, "answer": 9}, "*": {"prompt": 0, "answer": 0}}')
    prices = read_prices(str(path))
    assert price_of(prices, "gpt-4o")["prompt"] == 9
    assert price_of(prices, "my-own-server")["answer"] == 0
    assert price_of(prices, "gemini-2.5-pro")["answer"] == 10


def test_a_model_without_a_price_names_those_with_one_and_the_option():
    with pytest.raises(UserError, match=r"no price for 'mistral'; known: gemini-2.5-flash, .*--prices"):
        make_unknown()


def make_unknown():
    return Budget(CapsConfig(), read_prices(None), "mistral", batch=False, spent=NOTHING)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a price table in JSON"),
        ("[]", "not a price table"),
        ('{"m": {"prompt": 1}}', "m: a price is"),
        ('{"m": 3}', "m: a price is"),
        ('{"m": {"prompt": -1, "answer": 1}}', "m: prompt must be a number and not negative"),
        ('{"m": {"prompt": NaN, "answer": 1}}', "m: prompt must be a number"),
        ('{"m": {"prompt": "1", "answer": 1}}', "m: prompt must be a number"),
    ],
)
def test_a_table_that_is_none_says_where(tmp_path, text, words):
    path = tmp_path / "prices.json"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_prices(str(path))


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_prices(str(tmp_path / "prices.json"))


def test_prices_are_sorted_out_in_the_file_that_ships():
    table = json.loads(budgets.BUILT_IN.read_text())
    assert all(set(price) == {"prompt", "answer", "batch"} for price in table.values())


def test_dollars_are_rounded_up():
    assert [dollars(n) for n in (0, 1, 123_456_789, 10**9, 1_234 * 10**9 + 1)] == [
        "$0.0000",
        "$0.0001",
        "$0.1235",
        "$1.0000",
        "$1,234.01",
    ]
