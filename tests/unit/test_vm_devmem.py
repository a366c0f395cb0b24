"""The pattern of devmem tests, and its transport over a plain socket."""

import socket
import threading

import numpy as np
import pytest

from nicmodel.vm.devmem import PATTERN_BYTES, PATTERN_WORDS, Received, mismatch, pattern, receive_pattern, send_pattern


def test_the_words_are_splitmix64() -> None:
    # The generator's published test vector (prng.di.unimi.it/splitmix64.c, seed 1234567).
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert pattern(1234567).view("<u8")[:4].tolist() == expected


def test_the_period_is_a_prime_number_of_words() -> None:
    assert all(PATTERN_WORDS % n for n in range(2, 1024))
    assert len(pattern()) == PATTERN_BYTES


@pytest.mark.parametrize("offset", [0, 5, PATTERN_BYTES - 3, 3 * PATTERN_BYTES + 7])
def test_mismatch_finds_the_first_wrong_byte(offset: int) -> None:
    data = np.resize(pattern(), 4 * PATTERN_BYTES)[offset : offset + 1000].copy()
    assert mismatch(data.tobytes(), offset) is None
    assert mismatch(data.tobytes(), offset + 4096) == offset + 4096
    data[700] ^= 1
    data[900] ^= 1
    assert mismatch(data.tobytes(), offset) == offset + 700


@pytest.mark.parametrize("nbytes", [1, 1000, PATTERN_BYTES + 12345])
def test_what_is_sent_is_received(nbytes: int) -> None:
    received: list[Received] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = threading.Thread(target=lambda: received.append(receive_pattern(listener, seed=7)))
        receiver.start()
        assert send_pattern("127.0.0.1", listener.getsockname()[1], nbytes, seed=7) > 0
        receiver.join()
    assert (received[0].nbytes, received[0].mismatch) == (nbytes, None)


def test_the_wrong_seed_is_noticed() -> None:
    received: list[Received] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = threading.Thread(target=lambda: received.append(receive_pattern(listener, seed=8)))
        receiver.start()
        send_pattern("127.0.0.1", listener.getsockname()[1], 100, seed=7)
        receiver.join()
    assert received[0].mismatch == 0
