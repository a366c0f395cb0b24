/* A plugin of QEMU's emulator (TCG): which blocks of guest code run, and how often.
 *
 *   qemu-system-x86_64 ... -plugin plugin.so,live=FILE
 *
 * TCG translates guest code block by block: instructions in a row, up to a jump. Whenever it does so for code between
 * the addresses of the file's header, the block gets a slot in FILE, which says where it is and how it begins. Each
 * time the block is entered, the counter of its slot goes up. Each vCPU has counters of its own, so none is lost.
 *
 * Whoever maps FILE too can read while the guest runs. Nobody but this plugin writes what is declared here, except
 * that the host makes the file: live.py, which has the same declarations. Sizes and offsets are in bytes.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* What is used of QEMU's interface for plugins (QEMU, include/plugins/qemu-plugin.h). Its header needs glib's, and
 * Debian has it in no package that is small. */
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef uint64_t qemu_plugin_id_t;
typedef struct {
	const char *target_name;
	struct {
		int min, cur;
	} version;
	bool system_emulation;
	struct {
		int smp_vcpus, max_vcpus;
	} system;
} qemu_info_t;
enum { QEMU_PLUGIN_CB_NO_REGS };
#if API < 7
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*callback)(qemu_plugin_id_t, struct qemu_plugin_tb *));
#else
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*callback)(struct qemu_plugin_tb *, void *userdata),
					   void *userdata);
#endif
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*callback)(unsigned vcpu, void *userdata),
					  int flags, void *userdata);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t index);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *data, size_t size);

#define EXPORT __attribute__((visibility("default")))

/* A QEMU takes plugins of its own version of the interface, and of some older ones: build.py asks it for which. */
EXPORT int qemu_plugin_version = API;

/* The file: live.py. */
#define MAGIC "nicmodel coverage live 1\n"
enum { CODE = 32 };

struct header {
	char magic[32];
	uint64_t low, high; /* guest addresses that are looked at */
	uint64_t vcpus, slots;
	uint64_t blocks_at;   /* struct block [slots] */
	uint64_t counters_at; /* uint64_t [vcpus][slots] */
	uint64_t size;
	uint64_t used; /* slots; those below are complete */
	uint64_t lost; /* translations of blocks for which there was no slot */
};

struct block {
	uint64_t address;
	uint64_t size;
	uint8_t code[CODE]; /* its first bytes; zeros follow a shorter block */
};

static struct header *header;
static struct block *blocks;
static uint64_t *counters;
static uint32_t *table; /* hash table: slot + 1, or 0 */
static uint64_t table_mask;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The slot of a block, a new one if it has none; -1 if there are no more. */
static int64_t slot_of(const struct block *block)
{
	uint64_t hash = 14695981039346656037ull; /* FNV-1a */

	for (size_t i = 0; i < sizeof *block; i++)
		hash = (hash ^ ((const uint8_t *)block)[i]) * 1099511628211ull;
	for (;; hash++) {
		uint32_t *entry = &table[hash & table_mask];

		if (!*entry) {
			if (header->used >= header->slots)
				return -1;
			blocks[header->used] = *block;
			*entry = header->used + 1;
			__atomic_store_n(&header->used, *entry, __ATOMIC_RELEASE);
		}
		if (!memcmp(&blocks[*entry - 1], block, sizeof *block))
			return *entry - 1;
	}
}

static void on_execution(unsigned vcpu, void *slot)
{
	if (vcpu < header->vcpus)
		counters[vcpu * header->slots + (uintptr_t)slot]++;
}

#if API < 7
static void on_translation(qemu_plugin_id_t, struct qemu_plugin_tb *tb)
#else
static void on_translation(struct qemu_plugin_tb *tb, void *)
#endif
{
	struct block block = { .address = qemu_plugin_tb_vaddr(tb) };
	size_t count = qemu_plugin_tb_n_insns(tb);
	int64_t slot;

	if (block.address < header->low || block.address >= header->high)
		return;
	for (size_t i = 0; i < count; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);

		if (block.size < CODE)
			qemu_plugin_insn_data(insn, block.code + block.size, CODE - block.size);
		block.size += qemu_plugin_insn_size(insn);
	}
	pthread_mutex_lock(&lock);
	slot = slot_of(&block);
	if (slot < 0)
		header->lost++;
	pthread_mutex_unlock(&lock);
	if (slot >= 0)
		qemu_plugin_register_vcpu_tb_exec_cb(tb, on_execution, QEMU_PLUGIN_CB_NO_REGS, (void *)slot);
}

static int refuse(const char *file, const char *why)
{
	fprintf(stderr, "coverage plugin: %s: %s\n", file, why);
	return -1;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
	const char *file = argc == 1 && !strncmp(argv[0], "live=", 5) ? argv[0] + 5 : NULL;
	struct stat about;
	int fd;

	if (!file)
		return refuse("arguments", "live=FILE is wanted, and nothing else");
	fd = open(file, O_RDWR | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &about))
		return refuse(file, "cannot be opened");
	if ((size_t)about.st_size < sizeof *header)
		return refuse(file, "is too short");
	header = mmap(NULL, about.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (header == MAP_FAILED)
		return refuse(file, "cannot be mapped");
	if (strncmp(header->magic, MAGIC, sizeof header->magic) || header->size != (uint64_t)about.st_size)
		return refuse(file, "is not of this plugin's version");
	if (!info->system_emulation || header->vcpus < (uint64_t)info->system.max_vcpus)
		return refuse(file, "has not counters for all vCPUs");
	blocks = (struct block *)((char *)header + header->blocks_at);
	counters = (uint64_t *)((char *)header + header->counters_at);
	for (table_mask = 1; table_mask < 4 * header->slots; table_mask *= 2)
		;
	table = calloc(table_mask, sizeof *table);
	if (!table)
		return refuse(file, "has more slots than there is memory for");
	table_mask--;
#if API < 7
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
#else
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation, NULL);
#endif
	return 0;
}
