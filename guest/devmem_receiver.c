/*
 * Receive a TCP stream into a dma-buf (Linux, Documentation/networking/devmem.rst) and check everything that can be
 * checked: each fragment lies inside the dma-buf, names the right one, their sizes add up to what recvmsg returned, and
 * the content is the sender's pattern, byte by byte.
 *
 * With --copy it does the same work without devmem TCP, for comparison: the kernel copies the stream to this program,
 * and the program copies it to the memory that would be the dma-buf.
 *
 * Before: the interface has tcp-data-split on (ethtool -G), fewer RSS queues than it has queues (ethtool -X), and an
 * ntuple rule that steers the flow to a queue given here (ethtool -N).
 *
 * Prints "ready" when it listens, and one line of JSON at the end. Exit status 1 if anything was wrong.
 */
#define _GNU_SOURCE
#include "devmem.h"

#include <errno.h>
#include <getopt.h>
#include <linux/dma-buf.h>
#define __iovec_defined 1 /* both headers define struct iovec, and only one knows how to yield */
#include <linux/uio.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef MSG_SOCK_DEVMEM
#define MSG_SOCK_DEVMEM 0x2000000 /* include/linux/socket.h, not part of the headers for programs */
#endif

/* net/core/sock.c, sock_devmem_dontneed(): more ranges are refused, fragments beyond are left unreturned. */
#define MAX_RANGES 128
#define MAX_FRAGS 1024

static const char usage[] =
	"usage: devmem_receiver --interface NAME --port PORT --queues N[,N...] [options]\n"
	"  --size BYTES      size of the dma-buf (64M)\n"
	"  --node N          take its memory from NUMA node N\n"
	"  --device FILE     take its memory from a PCI device's BAR: /dev/bar_dmabuf/<PCI address>\n"
	"  --offset BYTES    where in the device's memory it begins (0)\n"
	"  --seed N          seed of the sender's pattern (1)\n"
	"  --no-verify       do not read the content\n"
	"  --receive BYTES   what one recvmsg asks for (1M)\n"
	"  --batch N         return tokens when N have gathered (256)\n"
	"  --no-return       return no token until SIGUSR1 comes\n"
	"  --pieces FILE     write there where each piece of the stream lies in the dma-buf: offset and size\n"
	"  --unbind-after N  give the queues back when N bytes have come; the rest comes to ordinary memory\n"
	"  --plain           receive without MSG_SOCK_DEVMEM, as a program that knows nothing of dma-bufs; without\n"
	"                    --interface there is no dma-buf either\n"
	"  --keep            keep the whole stream in the dma-buf, and check it after its end, when that costs no time\n"
	"  --copy            bind nothing: receive as usual, and copy to the dma-buf's memory; implies --keep\n";

static volatile sig_atomic_t returning = true;

static void start_returning(int signal)
{
	(void)signal;
	returning = true;
}

static FILE *pieces;

static struct {
	uint64_t bytes, frags, linear_bytes, tokens, receives, errors, copied;
	size_t min_frag, max_frag;
	char first_error[200];
} result;

__attribute__((format(printf, 1, 2))) static void error(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	if (!result.errors++)
		vsnprintf(result.first_error, sizeof(result.first_error), format, arguments);
	va_end(arguments);
}

/* Tokens not yet returned, as ranges. */
static struct dmabuf_token *ranges;
static size_t range_count, range_room, held;

static void hold(uint32_t token)
{
	struct dmabuf_token *last = range_count ? &ranges[range_count - 1] : NULL;

	held++;
	if (last && last->token_start + last->token_count == token && last->token_count < MAX_FRAGS) {
		last->token_count++;
		return;
	}
	if (range_count == range_room) {
		range_room = range_room ? 2 * range_room : 1024;
		ranges = realloc(ranges, range_room * sizeof(*ranges));
		if (!ranges)
			die("out of memory");
	}
	ranges[range_count++] = (struct dmabuf_token){ .token_start = token, .token_count = 1 };
}

static void return_tokens(int fd)
{
	for (size_t first = 0, count; first < range_count; first += count) {
		size_t frags = 0;
		int freed;

		for (count = 0; first + count < range_count && count < MAX_RANGES; count++) {
			if (frags + ranges[first + count].token_count > MAX_FRAGS)
				break;
			frags += ranges[first + count].token_count;
		}
		freed = setsockopt(fd, SOL_SOCKET, SO_DEVMEM_DONTNEED, ranges + first, count * sizeof(*ranges));
		if (freed < 0)
			error("SO_DEVMEM_DONTNEED of %zu tokens: %s", frags, strerror(errno));
		else if ((size_t)freed != frags)
			error("SO_DEVMEM_DONTNEED of %zu tokens freed %d", frags, freed);
		result.tokens += freed > 0 ? freed : 0;
	}
	range_count = held = 0;
}

static void check_content(const uint8_t *data, size_t size, uint64_t offset, const char *where)
{
	size_t at = pattern_mismatch(data, size, offset);

	if (at < size)
		error("byte %llu of the stream, in %s, is 0x%02x and should be 0x%02x",
		      (unsigned long long)(offset + at), where, data[at], pattern_byte(offset + at));
}

/* Where the stream lies in the dma-buf, in its order, if all of it is kept. */
static struct piece {
	size_t offset, size;
} *kept;
static size_t kept_count, kept_room;

static void keep(size_t offset, size_t size)
{
	if (kept_count == kept_room) {
		kept_room = kept_room ? 2 * kept_room : 1024;
		kept = realloc(kept, kept_room * sizeof(*kept));
		if (!kept)
			die("out of memory");
	}
	kept[kept_count++] = (struct piece){ .offset = offset, .size = size };
}

static void check_kept(const struct dmabuf *dmabuf)
{
	uint64_t at = 0;

	for (size_t i = 0; i < kept_count; at += kept[i++].size)
		check_content(dmabuf->data + kept[i].offset, kept[i].size, at, "the dma-buf");
}

/* Copy what recv brought to the dma-buf's memory, where the copy before ended. */
static void copy(const uint8_t *data, size_t received, const struct dmabuf *dmabuf)
{
	if (received > dmabuf->size - result.copied)
		die("the stream is longer than the %zu bytes of --size", dmabuf->size);
	memcpy(dmabuf->data + result.copied, data, received);
	keep(result.copied, received);
	result.copied += received;
	result.bytes += received;
}

/* Seconds that all CPUs together have not been idle since the system's start: interrupts are in it.
 * The kernel tells idle time in hundredths of a second. */
static double cpu_seconds(void)
{
	unsigned long long idle = 0, iowait = 0;
	FILE *file = fopen("/proc/stat", "r");

	if (!file || fscanf(file, "cpu %*u %*u %*u %llu %llu", &idle, &iowait) != 2)
		die("/proc/stat: %s", strerror(errno));
	fclose(file);
	return now() * sysconf(_SC_NPROCESSORS_ONLN) - (double)(idle + iowait) / sysconf(_SC_CLK_TCK);
}

/* Take what one recvmsg brought: `received` bytes, in the pieces that the control messages name, in stream order. */
static void take(struct msghdr *message, size_t received, const uint8_t *linear, const struct dmabuf *dmabuf,
		 uint32_t id, bool verify, bool keeping)
{
	size_t total = 0, linear_at = 0;

	if (message->msg_flags & MSG_CTRUNC)
		error("control messages were cut off");
	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		struct dmabuf_cmsg *frag = (void *)CMSG_DATA(c);
		uint64_t offset = result.bytes + total;

		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_DEVMEM_LINEAR) {
			if (verify)
				check_content(linear + linear_at, frag->frag_size, offset, "linear memory");
			linear_at += frag->frag_size;
			total += frag->frag_size;
			continue;
		}
		if (c->cmsg_type != SCM_DEVMEM_DMABUF)
			continue;
		hold(frag->frag_token);
		total += frag->frag_size;
		result.frags++;
		if (frag->frag_size > result.max_frag)
			result.max_frag = frag->frag_size;
		if (!result.min_frag || frag->frag_size < result.min_frag)
			result.min_frag = frag->frag_size;
		if (pieces)
			fprintf(pieces, "%llu %u\n", (unsigned long long)frag->frag_offset, frag->frag_size);
		if (frag->dmabuf_id != id)
			error("a fragment names dma-buf %u instead of %u", frag->dmabuf_id, id);
		if (frag->frag_offset > dmabuf->size || frag->frag_size > dmabuf->size - frag->frag_offset)
			error("a fragment of %u bytes at %llu lies outside the dma-buf", frag->frag_size,
			      (unsigned long long)frag->frag_offset);
		else if (keeping)
			keep(frag->frag_offset, frag->frag_size);
		else if (verify)
			check_content(dmabuf->data + frag->frag_offset, frag->frag_size, offset, "the dma-buf");
	}
	if (!CMSG_FIRSTHDR(message)) { /* no dma-buf had a part in it: an ordinary receive */
		if (verify)
			check_content(linear, received, result.bytes, "linear memory");
		linear_at = total = received;
	}
	if (total != received)
		error("recvmsg returned %zu, its fragments make %zu", received, total);
	result.linear_bytes += linear_at;
	result.bytes += received;
}

int main(int argc, char **argv)
{
	enum { INTERFACE, PORT, QUEUES, SIZE, NODE, DEVICE, OFFSET, SEED, NO_VERIFY, RECEIVE, BATCH, NO_RETURN, PIECES,
	       UNBIND_AFTER, PLAIN, KEEP, COPY };
	static const struct option options[] = {
		{ "interface", required_argument, NULL, INTERFACE },
		{ "port", required_argument, NULL, PORT },
		{ "queues", required_argument, NULL, QUEUES },
		{ "size", required_argument, NULL, SIZE },
		{ "node", required_argument, NULL, NODE },
		{ "device", required_argument, NULL, DEVICE },
		{ "offset", required_argument, NULL, OFFSET },
		{ "seed", required_argument, NULL, SEED },
		{ "no-verify", no_argument, NULL, NO_VERIFY },
		{ "receive", required_argument, NULL, RECEIVE },
		{ "batch", required_argument, NULL, BATCH },
		{ "no-return", no_argument, NULL, NO_RETURN },
		{ "pieces", required_argument, NULL, PIECES },
		{ "unbind-after", required_argument, NULL, UNBIND_AFTER },
		{ "plain", no_argument, NULL, PLAIN },
		{ "keep", no_argument, NULL, KEEP },
		{ "copy", no_argument, NULL, COPY },
		{ 0 },
	};
	const char *interface = NULL;
	uint32_t queues[64], id = 0;
	size_t queue_count = 0, size = 64 << 20, ask = 1 << 20, batch = 256, control_size;
	uint64_t seed = 1, unbind_after = 0;
	int port = 0, option, listener, fd, on = 1;
	bool verify = true, plain = false, keeping = false, copying = false, checking, bound;
	struct sigaction action = { .sa_handler = start_returning }; /* no SA_RESTART: it must wake recvmsg */
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT };
	struct dmabuf_source source = { .node = -1 };
	struct dmabuf dmabuf = { 0 };
	uint8_t *linear, *control;
	double started, seconds, busy;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case INTERFACE: interface = optarg; break;
		case PORT: port = parse_size(optarg, "port"); break;
		case QUEUES:
			for (char *queue = strtok(optarg, ","); queue && queue_count < 64; queue = strtok(NULL, ","))
				queues[queue_count++] = parse_size(queue, "queues");
			break;
		case SIZE: size = parse_size(optarg, "size"); break;
		case NODE: source.node = parse_size(optarg, "node"); break;
		case DEVICE: source.device = optarg; break;
		case OFFSET: source.offset = parse_size(optarg, "offset"); break;
		case SEED: seed = strtoull(optarg, NULL, 0); break;
		case NO_VERIFY: verify = false; break;
		case RECEIVE: ask = parse_size(optarg, "receive"); break;
		case BATCH: batch = parse_size(optarg, "batch"); break;
		case NO_RETURN: returning = false; break;
		case PIECES:
			pieces = fopen(optarg, "w");
			if (!pieces)
				die("%s: %s", optarg, strerror(errno));
			break;
		case UNBIND_AFTER: unbind_after = parse_size(optarg, "unbind-after"); break;
		case PLAIN: plain = true; break;
		case KEEP: keeping = true; break;
		case COPY: keeping = copying = true; break;
		default: die("%s", usage);
		}
	}
	bound = !copying && (!plain || interface);
	if (!port || (bound && (!interface || !queue_count)) || optind < argc)
		die("%s", usage);
	if (keeping)
		returning = false; /* what is returned is written again */
	checking = verify && !keeping;

	setlinebuf(stdout);
	sigaction(SIGUSR1, &action, NULL);
	if (verify)
		pattern_init(seed);
	if (bound || copying)
		dmabuf = dmabuf_create(size, &source);
	if (bound) {
		id = dmabuf_bind_rx(&dmabuf, interface, queues, queue_count);
		dmabuf_check_room(&dmabuf, interface, queue_count);
	}

	control_size = 1 << 20; /* for more than 26,000 fragments */
	linear = malloc(ask);
	control = malloc(control_size);
	listener = socket(AF_INET6, SOCK_STREAM, 0);
	address.sin6_port = htons(port);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (!linear || !control || listener < 0 || bind(listener, (void *)&address, sizeof(address)) ||
	    listen(listener, 1))
		die("listening on port %d: %s", port, strerror(errno));
	puts("ready");
	do
		fd = accept(listener, NULL, NULL);
	while (fd < 0 && errno == EINTR);
	if (fd < 0)
		die("accept: %s", strerror(errno));

	started = now();
	busy = cpu_seconds();
	for (;;) {
		struct iovec iov = { .iov_base = linear, .iov_len = ask };
		struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
					  .msg_controllen = control_size };
		ssize_t received = recvmsg(fd, &message, plain || copying ? 0 : MSG_SOCK_DEVMEM);

		if (received == 0)
			break;
		if (received < 0 && errno != EINTR) {
			error("recvmsg: %s: %s", strerrorname_np(errno), strerror(errno));
			break;
		}
		if (received > 0) {
			result.receives++;
			if (checking && bound)
				dmabuf_sync(&dmabuf, DMA_BUF_SYNC_START | DMA_BUF_SYNC_READ);
			if (copying)
				copy(linear, received, &dmabuf);
			else
				take(&message, received, linear, &dmabuf, id, checking, keeping);
			if (checking && bound)
				dmabuf_sync(&dmabuf, DMA_BUF_SYNC_END | DMA_BUF_SYNC_READ);
			if (unbind_after && result.bytes >= unbind_after) {
				dmabuf_unbind();
				puts("unbound");
				unbind_after = 0;
			}
		}
		if (returning && (held >= batch || (received < 0 && held)))
			return_tokens(fd);
	}
	busy = cpu_seconds() - busy;
	if (busy < 0) /* less than what the kernel tells */
		busy = 0;
	seconds = now() - started;
	if (verify && keeping) {
		dmabuf_sync(&dmabuf, DMA_BUF_SYNC_START | DMA_BUF_SYNC_READ);
		check_kept(&dmabuf);
		dmabuf_sync(&dmabuf, DMA_BUF_SYNC_END | DMA_BUF_SYNC_READ);
	}
	return_tokens(fd);
	if (pieces)
		fclose(pieces);
	printf("{\"bytes\": %llu, \"frags\": %llu, \"linear_bytes\": %llu, \"errors\": %llu, \"first_error\": \"%s\", "
	       "\"seconds\": %.6f, \"cpu_seconds\": %.2f, \"copied\": %llu, \"min_frag\": %zu, \"max_frag\": %zu, "
	       "\"tokens\": %llu, \"receives\": %llu, \"dmabuf_id\": %u}\n",
	       (unsigned long long)result.bytes, (unsigned long long)result.frags,
	       (unsigned long long)result.linear_bytes, (unsigned long long)result.errors, result.first_error, seconds,
	       busy, (unsigned long long)result.copied, result.min_frag, result.max_frag,
	       (unsigned long long)result.tokens, (unsigned long long)result.receives, id);
	return result.errors ? 1 : 0;
}
