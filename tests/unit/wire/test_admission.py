"""Places for strangers: who gets one, and when. Pure; the sockets are in test_transport.py."""

from fusejournal.wire.admission import Admission, Bucket


def test_a_bucket_gives_a_burst_and_then_a_pace() -> None:
    bucket = Bucket(5.0, 3)
    delays = []
    for _ in range(6):
        delays.append(round(bucket.delay(100.0), 3))
        bucket.take(100.0)
    assert delays == [0, 0, 0, 0.2, 0.4, 0.6]
    assert bucket.delay(200.0) == 0
    assert bucket.is_full(200.0)


def test_one_network_waits_and_others_do_not() -> None:
    admission = Admission()
    mine = [admission.take("192.0.2.1", 0.0) for _ in range(100)]
    assert mine[0] == 0
    assert mine[-1] is None, "a queue without an end"
    assert max(delay for delay in mine if delay is not None) <= 5.0
    assert admission.take("192.0.2.2", 0.0) == 0


def test_many_networks_together_do_not_keep_a_peer_out() -> None:
    admission = Admission()
    admission.trust("198.51.100.1")
    all_of_them = [admission.take(f"network {number}", 0.0) for number in range(5000)]
    assert None in all_of_them
    assert sum(delay is not None for delay in all_of_them) <= 60 + 5 * 20 + 1
    assert admission.take("a new one", 0.0) is None
    assert admission.take("198.51.100.1", 0.0) == 0
    assert len(admission._networks) <= 1026


def test_whose_place_goes() -> None:
    admission = Admission()
    places = {1: "many", 2: "one", 3: "many", 4: "peer"}
    assert admission.choose(places) == 1
    admission.trust("many")
    assert admission.choose(places) in (2, 4)
    admission.trust("peer")
    assert admission.choose(places) == 2
    del places[2]
    assert admission.choose(places) == 1


def test_who_is_trusted_is_bounded() -> None:
    admission = Admission()
    for number in range(1000):
        admission.trust(str(number))
    assert admission.choose({1: "0", 2: "999"}) == 1
    assert len(admission._trusted) <= 256
