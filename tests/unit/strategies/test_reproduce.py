"""The quick ones of the reproduced numbers hold in every test run."""

from benchmarks import reproduce


def test_dittos_personal_models_are_the_closed_form_over_lambda() -> None:
    assert all(line.holds for line in reproduce.ditto())


def test_scaffold_needs_fewer_rounds_than_fedavg_on_skewed_digits() -> None:
    import fedfleet_strategies as own

    plain, corrected = (
        sum(reproduce.rounds_to(0.9, kind, seed) for seed in range(3)) for kind in (own.FedAvg, own.Scaffold)
    )
    assert corrected < plain


def test_epsilons_and_errors_of_codes_are_the_published_ones() -> None:
    assert all(line.holds for line in (*reproduce.accountant(), *reproduce.codes()))
