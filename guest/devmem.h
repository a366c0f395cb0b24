/* What the devmem sender and receiver share: a dma-buf, its binding to a NIC, and the test pattern. */
#ifndef DEVMEM_H
#define DEVMEM_H

#include "tool.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Memory that is a dma-buf, mapped here at `data`. */
struct dmabuf {
	int fd;
	size_t size;
	uint8_t *data;
};

/* Where its memory comes from: part of a PCI device's BAR (module/bar_dmabuf.h) if `device`, the device file, is given;
 * else pages of a memfd, exported by udmabuf, and taken from NUMA node `node` if that is not -1. */
struct dmabuf_source {
	const char *device;
	size_t offset;
	int node;
};

/* Size in bytes, a multiple of the page size. Exits with a message if it cannot be made. */
struct dmabuf dmabuf_create(size_t size, const struct dmabuf_source *source);

/* DMA_BUF_IOCTL_SYNC around access by the CPU; flags: DMA_BUF_SYNC_START or _END, with _READ or _WRITE. */
void dmabuf_sync(const struct dmabuf *dmabuf, uint64_t flags);

/* Bind the dma-buf to receive queues of an interface (netlink family netdev, bind-rx), or for sending (bind-tx, no
 * queues). Returns the id that control messages name. The binding lasts as long as the process, or until
 * dmabuf_unbind(). Exits with the kernel's
 * own words if it refuses, and with what to do about it. */
uint32_t dmabuf_bind_rx(const struct dmabuf *dmabuf, const char *interface, const uint32_t *queues, size_t count);
uint32_t dmabuf_bind_tx(const struct dmabuf *dmabuf, const char *interface);
/* Say so on standard error if the dma-buf has less room than the rings of that many queues take at once: the kernel does not say it. */
void dmabuf_check_room(const struct dmabuf *dmabuf, const char *interface, size_t queues);
/* Take the last binding back: the queues get ordinary memory. What has been received stays where it is. */
void dmabuf_unbind(void);

/* The stream's content: 64-bit little-endian words of the splitmix64 sequence that starts at `seed`, repeated after a
 * prime number of words, so that no displacement by whole pages or buffers goes unnoticed. */
#define PATTERN_WORDS 1048573
#define PATTERN_BYTES (PATTERN_WORDS * sizeof(uint64_t))
void pattern_init(uint64_t seed);
void pattern_fill(uint8_t *data, size_t size, uint64_t offset);
/* Index of the first byte that is not the pattern's from stream position `offset` on; `size` if there is none. */
size_t pattern_mismatch(const uint8_t *data, size_t size, uint64_t offset);
uint8_t pattern_byte(uint64_t offset);

#endif
