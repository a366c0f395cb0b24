#define _GNU_SOURCE
#include "xdp.h"

#include "tool.h"

#include <errno.h>
#include <linux/btf.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Instructions (Linux, Documentation/bpf/standardization/instruction-set.rst). R1 is the context, struct xdp_md, at the
 * start and the first argument of calls; R0 is what a call or the program returns; calls spoil R1 to R5; R10 is the
 * stack's frame. */
enum { R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 };

static size_t emit(struct program *program, struct bpf_insn instruction)
{
	if (program->count == sizeof(program->instructions) / sizeof(instruction))
		die("the program is too long");
	program->instructions[program->count] = instruction;
	return program->count++;
}

static void emit_move(struct program *program, int to, int from)
{
	emit(program, (struct bpf_insn){ .code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = to, .src_reg = from });
}

static void emit_set(struct program *program, int to, int value)
{
	emit(program, (struct bpf_insn){ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = to, .imm = value });
}

static void emit_add(struct program *program, int to, int value)
{
	emit(program, (struct bpf_insn){ .code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = to, .imm = value });
}

/* size: BPF_B, BPF_H, BPF_W or BPF_DW. */
static void emit_load(struct program *program, int size, int to, int base, int offset)
{
	emit(program, (struct bpf_insn){ .code = BPF_LDX | size | BPF_MEM, .dst_reg = to, .src_reg = base,
					 .off = offset });
}

static void emit_store(struct program *program, int size, int base, int offset, int from)
{
	emit(program, (struct bpf_insn){ .code = BPF_STX | size | BPF_MEM, .dst_reg = base, .src_reg = from,
					 .off = offset });
}

static void emit_load_map(struct program *program, int to, int map)
{
	emit(program, (struct bpf_insn){ .code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = to,
					 .src_reg = BPF_PSEUDO_MAP_FD, .imm = map });
	emit(program, (struct bpf_insn){ 0 }); /* the upper half */
}

/* kind: 0 for a helper, BPF_PSEUDO_KFUNC_CALL for a function of the kernel's. */
static void emit_call(struct program *program, int kind, int function)
{
	emit(program, (struct bpf_insn){ .code = BPF_JMP | BPF_CALL, .src_reg = kind, .imm = function });
}

static void emit_exit(struct program *program)
{
	emit(program, (struct bpf_insn){ .code = BPF_JMP | BPF_EXIT });
}

void emit_return(struct program *program, int verdict)
{
	emit_set(program, R0, verdict);
	emit_exit(program);
}

void emit_swap_addresses(struct program *program)
{
	size_t long_enough;

	emit_load(program, BPF_W, R2, R1, offsetof(struct xdp_md, data));
	emit_load(program, BPF_W, R3, R1, offsetof(struct xdp_md, data_end));
	emit_move(program, R4, R2);
	emit_add(program, R4, ETH_HLEN);
	long_enough = emit(program, (struct bpf_insn){ .code = BPF_JMP | BPF_JLE | BPF_X, .dst_reg = R4, .src_reg = R3 });
	emit_return(program, XDP_DROP);
	program->instructions[long_enough].off = program->count - long_enough - 1;

	emit_load(program, BPF_W, R5, R2, 0);
	emit_load(program, BPF_H, R6, R2, 4);
	emit_load(program, BPF_W, R7, R2, ETH_ALEN);
	emit_load(program, BPF_H, R8, R2, ETH_ALEN + 4);
	emit_store(program, BPF_W, R2, 0, R7);
	emit_store(program, BPF_H, R2, 4, R8);
	emit_store(program, BPF_W, R2, ETH_ALEN, R5);
	emit_store(program, BPF_H, R2, ETH_ALEN + 4, R6);
}

void emit_redirect_to_device(struct program *program, int devmap)
{
	emit_load_map(program, R1, devmap);
	emit_set(program, R2, 0);
	emit_set(program, R3, XDP_ABORTED);
	emit_call(program, 0, BPF_FUNC_redirect_map);
	emit_exit(program);
}

void emit_redirect_to_socket(struct program *program, int xskmap)
{
	emit_load(program, BPF_W, R2, R1, offsetof(struct xdp_md, rx_queue_index));
	emit_load_map(program, R1, xskmap);
	emit_set(program, R3, XDP_PASS);
	emit_call(program, 0, BPF_FUNC_redirect_map);
	emit_exit(program);
}

/* A file's content, to be freed; sysfs does not tell sizes, and returns only a part at once. */
static char *read_file(const char *path)
{
	FILE *file = fopen(path, "rb");
	size_t size = 0, room = 0;
	char *content = NULL;

	if (!file)
		die("%s: %s", path, strerror(errno));
	do {
		room += 1 << 20;
		content = realloc(content, room);
		if (!content)
			die("%s: %s", path, strerror(errno));
		size += fread(content + size, 1, room - size, file);
	} while (size == room);
	fclose(file);
	return content;
}

/* The number of a function of the kernel's in its type information (Linux, Documentation/bpf/btf.rst). */
static int kernel_function(const char *name)
{
	/* What follows a type's three words, for each kind: a number of words, and a number more for each of its members. */
	static const struct { uint8_t words, each; } form[] = {
		[BTF_KIND_INT] = { 1, 0 },	  [BTF_KIND_ARRAY] = { 3, 0 },	  [BTF_KIND_STRUCT] = { 0, 3 },
		[BTF_KIND_UNION] = { 0, 3 },	  [BTF_KIND_ENUM] = { 0, 2 },	  [BTF_KIND_FUNC_PROTO] = { 0, 2 },
		[BTF_KIND_VAR] = { 1, 0 },	  [BTF_KIND_DATASEC] = { 0, 3 },  [BTF_KIND_DECL_TAG] = { 1, 0 },
		[BTF_KIND_ENUM64] = { 0, 3 },	  [NR_BTF_KINDS] = { 0, 0 },
	};
	char *btf = read_file("/sys/kernel/btf/vmlinux");
	const struct btf_header *header = (const void *)btf;
	const char *strings = btf + header->hdr_len + header->str_off;
	const char *types = btf + header->hdr_len + header->type_off;
	const struct btf_type *type = (const void *)types;

	for (int number = 1; (const char *)type < types + header->type_len; number++) {
		int kind = BTF_INFO_KIND(type->info);

		if (kind == BTF_KIND_FUNC && !strcmp(strings + type->name_off, name)) {
			free(btf);
			return number;
		}
		type = (const void *)((const uint32_t *)(type + 1) + form[kind].words +
				      form[kind].each * BTF_INFO_VLEN(type->info));
	}
	die("this kernel has no %s", name);
}

void emit_push_timestamp(struct program *program, int queue)
{
	const int timestamp = -8; /* on the stack */

	emit_move(program, R6, R1);
	emit_set(program, R2, 0);
	emit_store(program, BPF_DW, R10, timestamp, R2);
	emit_move(program, R2, R10);
	emit_add(program, R2, timestamp);
	emit_call(program, BPF_PSEUDO_KFUNC_CALL, kernel_function("bpf_xdp_metadata_rx_timestamp"));
	emit_load_map(program, R1, queue);
	emit_move(program, R2, R10);
	emit_add(program, R2, timestamp);
	emit_set(program, R3, BPF_ANY);
	emit_call(program, 0, BPF_FUNC_map_push_elem);
	emit_move(program, R1, R6);
}

static int bpf(int command, union bpf_attr *attributes)
{
	return syscall(SYS_bpf, command, attributes, sizeof(*attributes));
}

int map_create(uint32_t type, uint32_t key_size, uint32_t value_size, uint32_t entries)
{
	union bpf_attr attributes = { .map_type = type, .key_size = key_size, .value_size = value_size,
				      .max_entries = entries };
	int map = bpf(BPF_MAP_CREATE, &attributes);

	if (map < 0)
		die("creating a map of type %u: %s", type, strerror(errno));
	return map;
}

void map_set(int map, uint32_t key, uint32_t value)
{
	union bpf_attr attributes = { .map_fd = map, .key = (uintptr_t)&key, .value = (uintptr_t)&value };

	if (bpf(BPF_MAP_UPDATE_ELEM, &attributes))
		die("entry %u of a map: %s", key, strerror(errno));
}

int queue_pop(int queue, uint64_t *value)
{
	union bpf_attr attributes = { .map_fd = queue, .value = (uintptr_t)value };

	if (!bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &attributes))
		return 1;
	if (errno != ENOENT)
		die("taking from a map: %s", strerror(errno));
	return 0;
}

void program_attach(const struct program *program, unsigned int interface, int bound)
{
	static char log[1 << 16];
	union bpf_attr load = {
		.prog_type = BPF_PROG_TYPE_XDP,
		.expected_attach_type = BPF_XDP,
		.insns = (uintptr_t)program->instructions,
		.insn_cnt = program->count,
		.license = (uintptr_t)"Dual BSD/GPL", /* functions of the kernel's are for such programs only */
		.log_buf = (uintptr_t)log,
		.log_size = sizeof(log),
		.log_level = 1,
		.prog_flags = bound ? BPF_F_XDP_DEV_BOUND_ONLY : 0,
		.prog_ifindex = bound ? interface : 0,
	};
	union bpf_attr link = { .link_create = { .target_ifindex = interface, .attach_type = BPF_XDP,
						 .flags = XDP_FLAGS_DRV_MODE } };
	int fd = bpf(BPF_PROG_LOAD, &load);

	if (fd < 0)
		die("loading the program: %s\n%s", strerror(errno), log);
	link.link_create.prog_fd = fd;
	if (bpf(BPF_LINK_CREATE, &link) < 0) /* never closed: the kernel detaches the program with the process's end */
		die("attaching the program: %s", strerror(errno));
}
