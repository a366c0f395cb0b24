/*
 * Send the test pattern over TCP out of a dma-buf (Linux, Documentation/networking/devmem.rst, "TX Interface"): the CPU
 * writes the pattern into the dma-buf, the NIC reads it there.
 *
 * Prints one line of JSON at the end. Exit status 1 if anything went wrong.
 */
#define _GNU_SOURCE
#include "devmem.h"

#include <errno.h>
#include <getopt.h>
#include <linux/dma-buf.h>
#include <time.h> /* for linux/errqueue.h */
#include <linux/errqueue.h>
#define __iovec_defined 1 /* both headers define struct iovec, and only one knows how to yield */
#include <linux/uio.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define SLOTS 8 /* parts of the dma-buf, one sent while the next is filled */

static const char usage[] =
	"usage: devmem_sender --interface NAME --connect ADDRESS --port PORT --bytes BYTES [options]\n"
	"  --size BYTES      size of the dma-buf (16M)\n"
	"  --node N          take its memory from NUMA node N\n"
	"  --device FILE     take its memory from a PCI device's BAR: /dev/bar_dmabuf/<PCI address>\n"
	"  --offset BYTES    where in the device's memory it begins (0)\n"
	"  --seed N          seed of the pattern (1)\n"
	"  --no-fill         send what is in the dma-buf, over and over, instead of the pattern\n";

static uint32_t sent, completed; /* calls of sendmsg; those whose memory the kernel is done with */
static uint32_t copied; /* those that the kernel copied, instead of handing the dma-buf's memory to the NIC */

/* Read completions from the socket's error queue (Documentation/networking/msg_zerocopy.rst) until `until` calls are
 * complete. TCP completes them in order. */
static void wait_completed(int fd, uint32_t until)
{
	while ((int32_t)(until - completed) > 0) {
		uint8_t control[256];
		struct msghdr message = { .msg_control = control, .msg_controllen = sizeof(control) };
		struct pollfd poll_error = { .fd = fd };

		if (recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) {
			int error = 0;
			socklen_t size = sizeof(error);

			if (errno != EAGAIN)
				die("completions: %s", strerror(errno));
			getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
			if (error)
				die("connection: %s", strerror(error));
			if (!poll(&poll_error, 1, 10000))
				die("no completion within 10 s: %u of %u", completed, sent);
			continue;
		}
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
			struct sock_extended_err *error = (void *)CMSG_DATA(c);

			if (error->ee_origin != SO_EE_ORIGIN_ZEROCOPY)
				die("connection: %s", strerror(error->ee_errno));
			completed = error->ee_data + 1;
			if (error->ee_code & SO_EE_CODE_ZEROCOPY_COPIED)
				copied += error->ee_data - error->ee_info + 1;
		}
	}
}

/* Send `size` bytes at `offset` of the dma-buf `id`. */
static void send_part(int fd, uint32_t id, size_t offset, size_t size)
{
	while (size) {
		uint8_t control[CMSG_SPACE(sizeof(id))] = { 0 };
		/* Not an address: the position in the dma-buf. */
		struct iovec iov = { .iov_base = (void *)offset, .iov_len = size };
		struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
					  .msg_controllen = sizeof(control) };
		struct cmsghdr *c = CMSG_FIRSTHDR(&message);
		ssize_t taken;

		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_DEVMEM_DMABUF;
		c->cmsg_len = CMSG_LEN(sizeof(id));
		memcpy(CMSG_DATA(c), &id, sizeof(id));
		taken = sendmsg(fd, &message, MSG_ZEROCOPY);
		if (taken < 0)
			die("sendmsg of %zu bytes at %zu: %s", size, offset, strerror(errno));
		sent++;
		offset += taken;
		size -= taken;
	}
}

static int connect_to(const char *address, const char *port, const char *interface)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST }, *found;
	int error = getaddrinfo(address, port, &hints, &found), on = 1, fd;

	if (error)
		die("%s port %s: %s", address, port, gai_strerror(error));
	fd = socket(found->ai_family, SOCK_STREAM, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, interface, strlen(interface)) ||
	    setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)))
		die("socket on %s: %s", interface, strerror(errno));
	if (connect(fd, found->ai_addr, found->ai_addrlen))
		die("connecting to %s port %s: %s", address, port, strerror(errno));
	freeaddrinfo(found);
	return fd;
}

int main(int argc, char **argv)
{
	enum { INTERFACE, CONNECT, PORT, BYTES, SIZE, NODE, DEVICE, OFFSET, SEED, NO_FILL };
	static const struct option options[] = {
		{ "interface", required_argument, NULL, INTERFACE },
		{ "connect", required_argument, NULL, CONNECT },
		{ "port", required_argument, NULL, PORT },
		{ "bytes", required_argument, NULL, BYTES },
		{ "size", required_argument, NULL, SIZE },
		{ "node", required_argument, NULL, NODE },
		{ "device", required_argument, NULL, DEVICE },
		{ "offset", required_argument, NULL, OFFSET },
		{ "seed", required_argument, NULL, SEED },
		{ "no-fill", no_argument, NULL, NO_FILL },
		{ 0 },
	};
	const char *interface = NULL, *address = NULL, *port = NULL;
	uint64_t seed = 1, bytes = 0, position = 0;
	uint32_t last_call[SLOTS] = { 0 }, id;
	size_t size = 16 << 20, slot_size;
	bool fill = true;
	int option, fd;
	struct dmabuf_source source = { .node = -1 };
	struct dmabuf dmabuf;
	double started;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case INTERFACE: interface = optarg; break;
		case CONNECT: address = optarg; break;
		case PORT: port = optarg; break;
		case BYTES: bytes = parse_size(optarg, "bytes"); break;
		case SIZE: size = parse_size(optarg, "size"); break;
		case NODE: source.node = parse_size(optarg, "node"); break;
		case DEVICE: source.device = optarg; break;
		case OFFSET: source.offset = parse_size(optarg, "offset"); break;
		case SEED: seed = strtoull(optarg, NULL, 0); break;
		case NO_FILL: fill = false; break;
		default: die("%s", usage);
		}
	}
	if (!interface || !address || !port || !bytes || optind < argc)
		die("%s", usage);

	pattern_init(seed);
	dmabuf = dmabuf_create(size, &source);
	id = dmabuf_bind_tx(&dmabuf, interface);
	fd = connect_to(address, port, interface);
	slot_size = size / SLOTS;
	started = now();
	for (unsigned int slot = 0; position < bytes; slot = (slot + 1) % SLOTS) {
		size_t part = bytes - position < slot_size ? bytes - position : slot_size;

		wait_completed(fd, last_call[slot]);
		if (fill) {
			dmabuf_sync(&dmabuf, DMA_BUF_SYNC_START | DMA_BUF_SYNC_WRITE);
			pattern_fill(dmabuf.data + slot * slot_size, part, position);
			dmabuf_sync(&dmabuf, DMA_BUF_SYNC_END | DMA_BUF_SYNC_WRITE);
		}
		send_part(fd, id, slot * slot_size, part);
		last_call[slot] = sent;
		position += part;
	}
	wait_completed(fd, sent);
	printf("{\"bytes\": %llu, \"seconds\": %.6f, \"sends\": %u, \"copied\": %u, \"dmabuf_id\": %u}\n",
	       (unsigned long long)position, now() - started, sent, copied, id);
	return 0;
}
