/*
 * Send back whatever an interface receives, its Ethernet addresses swapped, by AF_XDP sockets (Linux,
 * Documentation/networking/af_xdp.rst), one for each receive queue, until standard input ends.
 *
 * Says "ready" when all are bound; prints one line of JSON at the end, counts for each queue.
 */
#define _GNU_SOURCE
#include "tool.h"
#include "xdp.h"

#include <errno.h>
#include <getopt.h>
#include <linux/if_ether.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_QUEUES 16
#define CHUNK 2048
#define ENTRIES 2048 /* of each ring, and chunks: no ring can overflow */
/*
 * How often the end waits for 10 ms for completions. A driver may be lazy: idpf looks for them when its ring has filled,
 * or a second after it has sent last (Linux, include/net/libeth/xdp.h, libeth_xdpsq_queue_timer).
 */
#define LAST_LOOKS 500

static const char usage[] =
	"usage: xdp_socket --interface NAME --queues COUNT copy|zero-copy\n";

/* One of a socket's rings, shared with the kernel: one side produces, the other consumes. */
struct ring {
	uint32_t *producer, *consumer, *flags;
	void *entries; /* struct xdp_desc for packets, else 64-bit addresses in the memory */
};

/* A socket, its memory for packets, and counts. Chunks go round: fill, receive, transmit, completion, fill. */
struct echo {
	int fd;
	uint8_t *memory;
	struct ring fill, completion, receive, transmit;
	unsigned long long received;
	unsigned long long completed;
};

static void check(int result, const char *what)
{
	if (result < 0)
		die("%s: %s", what, strerror(errno));
}

static struct ring map_ring(int fd, const struct xdp_ring_offset *offset, size_t entry, uint64_t page)
{
	uint8_t *ring = mmap(NULL, offset->desc + ENTRIES * entry, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
			     page);

	if (ring == MAP_FAILED)
		die("mapping a ring: %s", strerror(errno));
	return (struct ring){ (void *)(ring + offset->producer), (void *)(ring + offset->consumer),
			      (void *)(ring + offset->flags), ring + offset->desc };
}

/* How many entries the kernel has produced that have not been consumed here. */
static uint32_t waiting(const struct ring *ring)
{
	return __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE) - *ring->consumer;
}

static void open_echo(struct echo *echo, unsigned int interface, uint32_t queue, uint16_t mode)
{
	struct sockaddr_xdp address = { .sxdp_family = AF_XDP, .sxdp_ifindex = interface, .sxdp_queue_id = queue,
					.sxdp_flags = mode | XDP_USE_NEED_WAKEUP };
	struct xdp_umem_reg memory = { .len = ENTRIES * CHUNK, .chunk_size = CHUNK };
	struct xdp_mmap_offsets offsets;
	socklen_t size = sizeof(offsets);
	const int entries = ENTRIES;
	const int ring_options[] = { XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING, XDP_TX_RING };
	char what[64];

	echo->fd = socket(AF_XDP, SOCK_RAW, 0);
	check(echo->fd, "AF_XDP socket");
	echo->memory = mmap(NULL, memory.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (echo->memory == MAP_FAILED)
		die("memory for packets: %s", strerror(errno));
	memory.addr = (uintptr_t)echo->memory;
	check(setsockopt(echo->fd, SOL_XDP, XDP_UMEM_REG, &memory, sizeof(memory)), "XDP_UMEM_REG");
	for (size_t i = 0; i < sizeof(ring_options) / sizeof(*ring_options); i++)
		check(setsockopt(echo->fd, SOL_XDP, ring_options[i], &entries, sizeof(entries)), "size of a ring");
	check(getsockopt(echo->fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &size), "XDP_MMAP_OFFSETS");
	echo->fill = map_ring(echo->fd, &offsets.fr, sizeof(uint64_t), XDP_UMEM_PGOFF_FILL_RING);
	echo->completion = map_ring(echo->fd, &offsets.cr, sizeof(uint64_t), XDP_UMEM_PGOFF_COMPLETION_RING);
	echo->receive = map_ring(echo->fd, &offsets.rx, sizeof(struct xdp_desc), XDP_PGOFF_RX_RING);
	echo->transmit = map_ring(echo->fd, &offsets.tx, sizeof(struct xdp_desc), XDP_PGOFF_TX_RING);
	for (uint64_t i = 0; i < ENTRIES; i++)
		((uint64_t *)echo->fill.entries)[i] = i * CHUNK;
	__atomic_store_n(echo->fill.producer, ENTRIES, __ATOMIC_RELEASE);
	snprintf(what, sizeof(what), "binding to queue %u, %s", queue, mode == XDP_ZEROCOPY ? "zero copy" : "copy");
	check(bind(echo->fd, (void *)&address, sizeof(address)), what);
}

/* Put what has come into the transmit ring. */
static void answer(struct echo *echo)
{
	const struct xdp_desc *received = echo->receive.entries;
	struct xdp_desc *sent = echo->transmit.entries;
	uint32_t count = waiting(&echo->receive);
	uint8_t destination[ETH_ALEN];

	for (uint32_t i = 0; i < count; i++) {
		struct xdp_desc packet = received[(*echo->receive.consumer + i) % ENTRIES];
		uint8_t *data = echo->memory + packet.addr;

		memcpy(destination, data, ETH_ALEN);
		memcpy(data, data + ETH_ALEN, ETH_ALEN);
		memcpy(data + ETH_ALEN, destination, ETH_ALEN);
		sent[(*echo->transmit.producer + i) % ENTRIES] = packet;
	}
	__atomic_store_n(echo->transmit.producer, *echo->transmit.producer + count, __ATOMIC_RELEASE);
	__atomic_store_n(echo->receive.consumer, *echo->receive.consumer + count, __ATOMIC_RELEASE);
	echo->received += count;
	if (*echo->transmit.producer != __atomic_load_n(echo->transmit.consumer, __ATOMIC_ACQUIRE) &&
	    (*echo->transmit.flags & XDP_RING_NEED_WAKEUP))
		sendto(echo->fd, NULL, 0, MSG_DONTWAIT, NULL, 0);
}

/* Give chunks whose packets have been sent to the receive side again. */
static void recycle(struct echo *echo)
{
	const uint64_t *done = echo->completion.entries;
	uint64_t *fill = echo->fill.entries;
	uint32_t count = waiting(&echo->completion);

	for (uint32_t i = 0; i < count; i++) /* the headroom in front of a packet is left out again */
		fill[(*echo->fill.producer + i) % ENTRIES] = done[(*echo->completion.consumer + i) % ENTRIES] / CHUNK * CHUNK;
	__atomic_store_n(echo->fill.producer, *echo->fill.producer + count, __ATOMIC_RELEASE);
	__atomic_store_n(echo->completion.consumer, *echo->completion.consumer + count, __ATOMIC_RELEASE);
	echo->completed += count;
}

/* How many packets have been sent and not been completed. */
static uint32_t outstanding(const struct echo *echo)
{
	return *echo->transmit.producer - *echo->completion.consumer;
}

/* Wait for what is still to be completed, but not for ever. */
static void finish(struct echo *echoes, size_t queues)
{
	for (int looks = 0; looks < LAST_LOOKS; looks++) {
		uint32_t left = 0;

		for (size_t queue = 0; queue < queues; queue++) {
			recycle(&echoes[queue]);
			left += outstanding(&echoes[queue]);
		}
		if (!left)
			return;
		usleep(10000);
	}
}

static void print_result(const struct echo *echoes, int queues)
{
	for (int queue = 0; queue < queues; queue++) {
		const struct echo *echo = &echoes[queue];
		struct xdp_statistics statistics;
		struct xdp_options options;
		socklen_t size = sizeof(statistics);

		check(getsockopt(echo->fd, SOL_XDP, XDP_STATISTICS, &statistics, &size), "XDP_STATISTICS");
		size = sizeof(options);
		check(getsockopt(echo->fd, SOL_XDP, XDP_OPTIONS, &options, &size), "XDP_OPTIONS");
		printf("%s{\"received\": %llu, \"completed\": %llu, \"zero_copy\": %s, \"rx_dropped\": %llu, "
		       "\"rx_ring_full\": %llu, \"tx_invalid\": %llu}",
		       queue ? ", " : "[", echo->received, echo->completed,
		       options.flags & XDP_OPTIONS_ZEROCOPY ? "true" : "false",
		       (unsigned long long)statistics.rx_dropped, (unsigned long long)statistics.rx_ring_full,
		       (unsigned long long)statistics.tx_invalid_descs);
	}
	puts("]");
}

int main(int argc, char **argv)
{
	enum { INTERFACE, QUEUES };
	static const struct option options[] = {
		{ "interface", required_argument, NULL, INTERFACE },
		{ "queues", required_argument, NULL, QUEUES },
		{ 0 },
	};
	static struct echo echoes[MAX_QUEUES];
	struct pollfd polled[MAX_QUEUES + 1] = { { .fd = STDIN_FILENO, .events = POLLIN } };
	struct program program = { 0 };
	const char *interface = NULL;
	unsigned int index;
	int option, xskmap;
	size_t queues = 0;
	uint16_t mode;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case INTERFACE: interface = optarg; break;
		case QUEUES: queues = parse_size(optarg, "queues"); break;
		default: die("%s", usage);
		}
	}
	if (!interface || !queues || queues > MAX_QUEUES || optind != argc - 1)
		die("%s", usage);
	mode = !strcmp(argv[optind], "zero-copy") ? XDP_ZEROCOPY : XDP_COPY;
	index = if_nametoindex(interface);
	if (!index)
		die("interface %s: %s", interface, strerror(errno));

	xskmap = map_create(BPF_MAP_TYPE_XSKMAP, sizeof(uint32_t), sizeof(uint32_t), MAX_QUEUES);
	emit_redirect_to_socket(&program, xskmap);
	program_attach(&program, index, false);
	for (size_t queue = 0; queue < queues; queue++) {
		open_echo(&echoes[queue], index, queue, mode);
		map_set(xskmap, queue, echoes[queue].fd);
		polled[queue + 1] = (struct pollfd){ .fd = echoes[queue].fd, .events = POLLIN };
	}
	puts("ready");
	fflush(stdout);
	while (!polled[0].revents) {
		/* A limit: completions alone wake nobody. */
		check(poll(polled, queues + 1, 10), "poll");
		for (size_t queue = 0; queue < queues; queue++) {
			recycle(&echoes[queue]);
			answer(&echoes[queue]);
		}
	}
	finish(echoes, queues);
	print_result(echoes, queues);
	return 0;
}
