from fedfleet_coordinator.clock import Now, UpClock


def test_up_time_goes_on_where_it_was_once_the_settle_time_is_over() -> None:
    monotonic = 1000.0
    clock = UpClock(50.0, settle_s=5.0, monotonic=lambda: monotonic, wall=lambda: 7.0)
    assert clock.now() == Now(50.0, 7.0, settling=True)
    monotonic += 4.9
    assert clock.now() == Now(50.0, 7.0, settling=True)
    monotonic += 2.1
    assert clock.now() == Now(52.0, 7.0)
