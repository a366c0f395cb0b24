/* XDP programs, assembled from instructions: they are a handful each, and no BPF compiler is needed. */
#ifndef XDP_H
#define XDP_H

#include <linux/bpf.h>
#include <stddef.h>
#include <stdint.h>

/* A program under construction. */
struct program {
	struct bpf_insn instructions[64];
	size_t count;
};

/* Swap the addresses of the Ethernet header; end with XDP_DROP if there is none. Changes all registers but R1. */
void emit_swap_addresses(struct program *program);

/* End with `verdict`, an enum xdp_action. */
void emit_return(struct program *program, int verdict);

/* End by redirecting to entry 0 of a devmap. */
void emit_redirect_to_device(struct program *program, int devmap);

/* End by redirecting to the AF_XDP socket that an xskmap has for the receive queue, or with XDP_PASS if it has none. */
void emit_redirect_to_socket(struct program *program, int xskmap);

/* Push the packet's hardware timestamp, a 64-bit number of nanoseconds, into a map of type BPF_MAP_TYPE_QUEUE; 0 if the
 * driver has none (Linux, Documentation/networking/xdp-rx-metadata.rst). Changes all registers but R1. */
void emit_push_timestamp(struct program *program, int queue);

/* Maps. They exit with the kernel's words on failure, and so do the functions below. */
int map_create(uint32_t type, uint32_t key_size, uint32_t value_size, uint32_t entries);
void map_set(int map, uint32_t key, uint32_t value);
/* Whether there was a value to take from the queue. */
int queue_pop(int queue, uint64_t *value);

/* Load a program and attach it to an interface in native mode, where the driver itself runs it. It stays attached as
 * long as the process lives. `bound`: for this device alone, which a program that asks for metadata has to be. */
void program_attach(const struct program *program, unsigned int interface, int bound);

#endif
