#define _GNU_SOURCE
#include "devmem.h"
#include "module/bar_dmabuf.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/dma-buf.h>
#include <linux/ethtool.h>
#include <linux/genetlink.h>
#include <linux/mempolicy.h>
#include <linux/netdev.h>
#include <linux/netlink.h>
#include <linux/sockios.h>
#include <linux/udmabuf.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint8_t *map(int fd, size_t size)
{
	void *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (data == MAP_FAILED)
		die("mmap of %zu bytes: %s", size, strerror(errno));
	return data;
}

static struct dmabuf export_bar(size_t size, const struct dmabuf_source *source)
{
	struct bar_dmabuf_range range = { .offset = source->offset, .size = size };
	struct dmabuf dmabuf = { .size = size };
	int device = open(source->device, O_RDWR | O_CLOEXEC);

	if (device < 0)
		die("%s: %s (insmod bar_dmabuf.ko?)", source->device, strerror(errno));
	dmabuf.fd = ioctl(device, BAR_DMABUF_EXPORT, &range);
	if (dmabuf.fd < 0) {
		static const char *const reasons[] = {
			[EINVAL] = "the offset must be a multiple of the page size",
			[ERANGE] = "the device's memory ends before",
			[EBUSY] = "a dma-buf has some of it already; /proc/iomem says whose, --offset takes another part",
			[ENOTTY] = "this is no device of bar_dmabuf.ko",
		};
		const char *reason = (size_t)errno < sizeof(reasons) / sizeof(*reasons) ? reasons[errno] : NULL;

		die("a dma-buf of %zu bytes at %zu of %s: %s%s%s%s", size, source->offset, source->device,
		    strerror(errno), reason ? " (" : "", reason ? reason : "", reason ? ")" : "");
	}
	close(device);
	dmabuf.data = map(dmabuf.fd, size);
	return dmabuf;
}

static struct dmabuf export_memfd(size_t size, const struct dmabuf_source *source)
{
	struct dmabuf dmabuf = { .size = size };
	struct udmabuf_create create = { .size = size };
	int memfd = memfd_create("devmem", MFD_ALLOW_SEALING);
	int udmabuf = open("/dev/udmabuf", O_RDWR);

	if (udmabuf < 0)
		die("/dev/udmabuf: %s (modprobe udmabuf?)", strerror(errno));
	if (memfd < 0 || ftruncate(memfd, size))
		die("memfd of %zu bytes: %s", size, strerror(errno));
	dmabuf.data = map(memfd, size);
	if (source->node >= 0) {
		unsigned long nodes = 1UL << source->node;

		if (syscall(SYS_mbind, dmabuf.data, size, MPOL_BIND, &nodes, 8 * sizeof(nodes), 0))
			die("binding memory to NUMA node %d: %s", source->node, strerror(errno));
	}
	if (fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK)) /* udmabuf insists: its pages must not go away */
		die("sealing the memfd: %s", strerror(errno));
	create.memfd = memfd;
	dmabuf.fd = ioctl(udmabuf, UDMABUF_CREATE, &create);
	if (dmabuf.fd < 0)
		die("udmabuf of %zu bytes: %s (more than /sys/module/udmabuf/parameters/size_limit_mb, or than the memory?)",
		    size, strerror(errno));
	close(udmabuf);
	return dmabuf;
}

struct dmabuf dmabuf_create(size_t size, const struct dmabuf_source *source)
{
	size_t page = sysconf(_SC_PAGESIZE);

	if (!size || size % page)
		die("a dma-buf of %zu bytes: the size must be a multiple of the page size, %zu", size, page);
	return source->device ? export_bar(size, source) : export_memfd(size, source);
}

void dmabuf_sync(const struct dmabuf *dmabuf, uint64_t flags)
{
	struct dma_buf_sync sync = { .flags = flags };

	if (ioctl(dmabuf->fd, DMA_BUF_IOCTL_SYNC, &sync))
		die("DMA_BUF_IOCTL_SYNC: %s", strerror(errno));
}

/* A generic netlink message under construction, or a received one. */
struct message {
	struct nlmsghdr header;
	struct genlmsghdr generic;
	uint8_t attributes[4096];
};

static struct nlattr *put(struct message *message, uint16_t type, const void *data, size_t size)
{
	struct nlattr *attribute = (void *)((uint8_t *)message + message->header.nlmsg_len);

	attribute->nla_type = type;
	attribute->nla_len = NLA_HDRLEN + size;
	if (size)
		memcpy((uint8_t *)attribute + NLA_HDRLEN, data, size);
	message->header.nlmsg_len += NLA_ALIGN(attribute->nla_len);
	if (message->header.nlmsg_len > sizeof(*message) - 256)
		die("too many queues for one message");
	return attribute;
}

static void put_u32(struct message *message, uint16_t type, uint32_t value)
{
	put(message, type, &value, sizeof(value));
}

/* The content of the attribute `type` among those from `start` to `end`, of at least `size` bytes; NULL if there is
 * none. */
static const void *get(const void *start, const void *end, uint16_t type, size_t size)
{
	const uint8_t *at = start;

	while (at + NLA_HDRLEN <= (const uint8_t *)end) {
		const struct nlattr *attribute = (const void *)at;

		if (attribute->nla_len < NLA_HDRLEN)
			break;
		if ((attribute->nla_type & NLA_TYPE_MASK) == type && attribute->nla_len >= NLA_HDRLEN + size)
			return at + NLA_HDRLEN;
		at += NLA_ALIGN(attribute->nla_len);
	}
	return NULL;
}

static struct message request(uint16_t family, uint8_t command)
{
	return (struct message){
		.header = { .nlmsg_len = NLMSG_HDRLEN + GENL_HDRLEN, .nlmsg_type = family,
			    .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK },
		.generic = { .cmd = command, .version = 1 },
	};
}

/* What to do when the kernel refuses a binding with `error`, and with these words if there are any; or NULL. */
static const char *remedy(int error, const char *words)
{
	if (words && strstr(words, "tcp-data-split"))
		return "switch header split on: ethtool -G <interface> tcp-data-split on";
	if (words && strstr(words, "hds-thresh"))
		return "split every packet: ethtool -G <interface> hds-thresh 0";
	switch (error) {
	case ERANGE: return "gve cannot restart its queue 0 alone: take another queue";
	case EINVAL: return words ? NULL : "no such queue? ethtool -l <interface> shows how many there are";
	case EAGAIN:
	case ENETDOWN: return "the interface is down: ip link set <interface> up";
	case EEXIST: return "another process has bound the queue, or an XDP program runs";
	case EREMOTEIO:
		return "the NIC does not reach this device peer-to-peer, dmesg says why; "
		       "under one PCIe switch, with no IOMMU, it does";
	default: return NULL;
	}
}

/* Send a request and return the first reply; exit with the kernel's words if it refuses `what`. */
static struct message transact(int fd, const struct message *request, const char *what)
{
	struct message reply;
	ssize_t size;

	if (send(fd, request, request->header.nlmsg_len, 0) < 0)
		die("%s: %s", what, strerror(errno));
	size = recv(fd, &reply, sizeof(reply), 0);
	if (size < (ssize_t)sizeof(struct nlmsghdr))
		die("%s: %s", what, size < 0 ? strerror(errno) : "netlink reply too short");
	if (reply.header.nlmsg_type == NLMSG_ERROR) {
		const struct nlmsgerr *error = NLMSG_DATA(&reply.header);
		const char *words = NULL, *advice;

		/* With NETLINK_CAP_ACK the request's payload is not quoted: attributes follow its header. */
		if (reply.header.nlmsg_flags & NLM_F_ACK_TLVS)
			words = get(error + 1, (uint8_t *)&reply + size, NLMSGERR_ATTR_MSG, 1);
		advice = remedy(-error->error, words);
		die("%s: %s%s%s%s%s", what, strerror(-error->error), words ? ": " : "", words ? words : "",
		    advice ? "\n" : "", advice ? advice : "");
	}
	return reply;
}

static int binding; /* the kernel unbinds when this socket goes */

void dmabuf_unbind(void)
{
	close(binding);
}

static uint32_t bind_dmabuf(const struct dmabuf *dmabuf, const char *interface, uint8_t command, const uint32_t *queues,
			    size_t count)
{
	int on = 1;
	int fd = binding = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
	struct message message, reply;
	const void *found;
	char what[200];
	int size;

	if (!if_nametoindex(interface))
		die("interface %s: %s", interface, strerror(errno));
	if (fd < 0 || setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on)) ||
	    setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof(on)))
		die("netlink: %s", strerror(errno));

	message = request(GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
	put(&message, CTRL_ATTR_FAMILY_NAME, NETDEV_FAMILY_NAME, sizeof(NETDEV_FAMILY_NAME));
	reply = transact(fd, &message, "netlink family netdev");
	found = get(reply.attributes, (uint8_t *)&reply + reply.header.nlmsg_len, CTRL_ATTR_FAMILY_ID, sizeof(uint16_t));
	if (!found)
		die("netlink family netdev has no id");
	recv(fd, &reply, sizeof(reply), 0); /* the acknowledgement that follows the reply */

	message = request(*(const uint16_t *)found, command);
	put_u32(&message, NETDEV_A_DMABUF_IFINDEX, if_nametoindex(interface));
	put_u32(&message, NETDEV_A_DMABUF_FD, dmabuf->fd);
	size = snprintf(what, sizeof(what), "binding the dma-buf to %s", interface);
	for (size_t i = 0; i < count; i++) {
		struct nlattr *nest = put(&message, NETDEV_A_DMABUF_QUEUES | NLA_F_NESTED, NULL, 0);

		put_u32(&message, NETDEV_A_QUEUE_ID, queues[i]);
		put_u32(&message, NETDEV_A_QUEUE_TYPE, NETDEV_QUEUE_TYPE_RX);
		nest->nla_len = (uint8_t *)&message + message.header.nlmsg_len - (uint8_t *)nest;
		if (size < (int)sizeof(what))
			size += snprintf(what + size, sizeof(what) - size, "%s %u", i ? "," : ", queue", queues[i]);
	}
	reply = transact(fd, &message, what);
	found = get(reply.attributes, (uint8_t *)&reply + reply.header.nlmsg_len, NETDEV_A_DMABUF_ID, sizeof(uint32_t));
	if (!found)
		die("%s: the kernel gave no id", what);
	return *(const uint32_t *)found;
}

uint32_t dmabuf_bind_rx(const struct dmabuf *dmabuf, const char *interface, const uint32_t *queues, size_t count)
{
	return bind_dmabuf(dmabuf, interface, NETDEV_CMD_BIND_RX, queues, count);
}

uint32_t dmabuf_bind_tx(const struct dmabuf *dmabuf, const char *interface)
{
	return bind_dmabuf(dmabuf, interface, NETDEV_CMD_BIND_TX, NULL, 0);
}

void dmabuf_check_room(const struct dmabuf *dmabuf, const char *interface, size_t queues)
{
	struct ethtool_ringparam ring = { .cmd = ETHTOOL_GRINGPARAM };
	struct ifreq request = { .ifr_data = (void *)&ring };
	size_t buffers = dmabuf->size / sysconf(_SC_PAGESIZE);
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	strncpy(request.ifr_name, interface, IFNAMSIZ - 1);
	/* A ring of N entries holds N - 1 buffers. */
	if (!ioctl(fd, SIOCETHTOOL, &request) && buffers < queues * (ring.rx_pending - 1))
		fprintf(stderr,
			"a dma-buf of %zu bytes has fewer buffers (%zu) than the rings of its queues (%zu of %u) take: the NIC "
			"will run out of them.\nA larger dma-buf, or a smaller ring: ethtool -G %s rx 512\n",
			dmabuf->size, buffers, queues, ring.rx_pending, interface);
	close(fd);
}

static uint64_t words[PATTERN_WORDS];

void pattern_init(uint64_t seed)
{
	for (size_t i = 0; i < PATTERN_WORDS; i++) {
		uint64_t z = seed += 0x9e3779b97f4a7c15;

		z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
		z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
		words[i] = z ^ (z >> 31);
	}
}

/* The longest piece of the pattern from `offset` on that does not wrap, at most `size` bytes. */
static const uint8_t *piece(uint64_t offset, size_t size, size_t *length)
{
	size_t start = offset % PATTERN_BYTES;

	*length = size < PATTERN_BYTES - start ? size : PATTERN_BYTES - start;
	return (const uint8_t *)words + start;
}

void pattern_fill(uint8_t *data, size_t size, uint64_t offset)
{
	size_t length;

	for (; size; data += length, size -= length, offset += length) {
		const uint8_t *expected = piece(offset, size, &length);

		memcpy(data, expected, length);
	}
}

size_t pattern_mismatch(const uint8_t *data, size_t size, uint64_t offset)
{
	size_t length;

	for (size_t at = 0; at < size; at += length) {
		const uint8_t *expected = piece(offset + at, size - at, &length);

		if (memcmp(data + at, expected, length)) {
			while (data[at] == *expected++)
				at++;
			return at;
		}
	}
	return size;
}

uint8_t pattern_byte(uint64_t offset)
{
	return ((const uint8_t *)words)[offset % PATTERN_BYTES];
}
