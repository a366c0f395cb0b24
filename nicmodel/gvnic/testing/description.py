"""What a gVNIC says of itself in answer to DESCRIBE_DEVICE, read as Linux reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nicmodel.gvnic.commands import (
    DEVICE_DESCRIPTOR,
    OPTION_BUFFER_SIZES,
    OPTION_DQO_RDA,
    OPTION_FLOW_STEERING,
    OPTION_HEADER,
    OPTION_JUMBO_FRAMES,
    OPTION_MODIFY_RING,
    OPTION_RSS_CONFIG,
    Feature,
    OptionId,
)
from nicmodel.gvnic.options.ddp.declarations import OPTION_DDP
from nicmodel.gvnic.options.deferred.declarations import OPTION_DEFERRED_PLACEMENT
from nicmodel.gvnic.options.owners.declarations import OPTION_BUFFER_OWNERS
from nicmodel.gvnic.testing.violation import ContractViolation


@dataclass(frozen=True)
class Description:
    """The device descriptor and its options.

    Attributes:
        descriptor: `DEVICE_DESCRIPTOR`.
        options: payload of each option by its id, in the device's order.
        features: what the DQO-RDA option lets take effect.
    """

    descriptor: np.void
    options: dict[int, bytes]
    features: Feature

    @classmethod
    def parse(cls, raw: bytes) -> Description:
        """Read the answer.

        Raises:
            ContractViolation: options leave the descriptor's total length, or DQO-RDA is not offered.
        """
        descriptor = np.frombuffer(raw, DEVICE_DESCRIPTOR, 1)[0]
        total = int(descriptor["total_length"])
        options: dict[int, bytes] = {}
        place = DEVICE_DESCRIPTOR.itemsize
        for _ in range(int(descriptor["num_device_options"])):
            header = np.frombuffer(raw, OPTION_HEADER, 1, place)[0]
            place += OPTION_HEADER.itemsize
            end = place + int(header["length"])
            if end > total:
                raise ContractViolation(f"option {header['id']:#x} ends at {end}, beyond the total length {total}")
            if header["required_features"] == 0:
                options[int(header["id"])] = raw[place:end]
            place = end
        if len(options.get(OptionId.DQO_RDA, b"")) < OPTION_DQO_RDA.itemsize:
            raise ContractViolation("the device does not offer the queue format DQO-RDA")
        supported = np.frombuffer(options[OptionId.DQO_RDA], OPTION_DQO_RDA, 1)["supported"][0]
        return cls(descriptor, options, Feature(int(supported)))

    @property
    def mac(self) -> str:
        """The station address, ``02:00:…``."""
        return ":".join(f"{byte:02x}" for byte in self.descriptor["mac"])

    @property
    def max_mtu(self) -> int:
        """Largest MTU, which is also what an interface starts with."""
        option = self._feature(Feature.JUMBO_FRAMES, OptionId.JUMBO_FRAMES, OPTION_JUMBO_FRAMES)
        return int(self.descriptor["mtu"] if option is None else option["max_mtu"])

    @property
    def packet_buffer_size(self) -> int:
        """Largest receive buffer, which is also the default."""
        option = self._feature(Feature.BUFFER_SIZES, OptionId.BUFFER_SIZES, OPTION_BUFFER_SIZES)
        return 2048 if option is None else int(option["packet_buffer_size"])

    @property
    def header_buffer_size(self) -> int:
        """Bytes of a header buffer; 0: no header split."""
        option = self._feature(Feature.BUFFER_SIZES, OptionId.BUFFER_SIZES, OPTION_BUFFER_SIZES)
        return 0 if option is None else int(option["header_buffer_size"])

    @property
    def max_flow_rules(self) -> int:
        """Room for flow rules; 0: no flow steering."""
        option = self._feature(Feature.FLOW_STEERING, OptionId.FLOW_STEERING, OPTION_FLOW_STEERING)
        return 0 if option is None else int(option["max_flow_rules"])

    @property
    def ring_limits(self) -> np.void | None:
        """Smallest and largest rings (`OPTION_MODIFY_RING`); None: only the default sizes."""
        return self._feature(Feature.MODIFY_RING, OptionId.MODIFY_RING, OPTION_MODIFY_RING)

    @property
    def rss_sizes(self) -> np.void | None:
        """Sizes of RSS key and table (`OPTION_RSS_CONFIG`) of a device that keeps them itself; None: the driver."""
        return self._feature(Feature.RSS_CONFIG, OptionId.RSS_CONFIG, OPTION_RSS_CONFIG)

    @property
    def has_timestamps(self) -> bool:
        """Whether received packets carry timestamps."""
        return Feature.NIC_TIMESTAMP in self.features and OptionId.NIC_TIMESTAMP in self.options

    @property
    def deferred_placement(self) -> np.void | None:
        """What the device can keep (`OPTION_DEFERRED_PLACEMENT`); None: it has no deferred placement."""
        raw = self.options.get(OptionId.DEFERRED_PLACEMENT, b"")
        return np.frombuffer(raw, OPTION_DEFERRED_PLACEMENT, 1)[0] if raw else None

    @property
    def buffer_owners(self) -> np.void | None:
        """How many owners a queue's buffers may have (`OPTION_BUFFER_OWNERS`); None: one."""
        raw = self.options.get(OptionId.BUFFER_OWNERS, b"")
        return np.frombuffer(raw, OPTION_BUFFER_OWNERS, 1)[0] if raw else None

    @property
    def ddp_limits(self) -> np.void | None:
        """How much can be placed directly (`OPTION_DDP`); None: nothing."""
        raw = self.options.get(OptionId.DDP, b"")
        return np.frombuffer(raw, OPTION_DDP, 1)[0] if len(raw) >= OPTION_DDP.itemsize else None

    def _feature(self, feature: Feature, option: OptionId, layout: np.dtype[np.void]) -> np.void | None:
        """An option's payload, if the queue format lets it take effect and it is long enough."""
        raw = self.options.get(option, b"")
        if feature not in self.features or len(raw) < layout.itemsize:
            return None
        return np.frombuffer(raw, layout, 1)[0]  # type: ignore[no-any-return]
