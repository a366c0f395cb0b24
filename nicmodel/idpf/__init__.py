"""The second personality: Infrastructure Data-Plane Function (Intel, OASIS), as a virtual function, split queues."""
