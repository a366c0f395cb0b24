/*
 * Attach an XDP program to an interface, natively, until standard input ends.
 *
 * Says "ready" when it is attached. With --timestamp each packet's hardware timestamp is printed at the end.
 */
#include "tool.h"
#include "xdp.h"

#include <errno.h>
#include <getopt.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define TIMESTAMPS 16384 /* that are kept; further ones are lost */

static const char usage[] =
	"usage: xdp_program --interface NAME pass|drop|tx|redirect [options]\n"
	"  tx           goes back, the Ethernet addresses swapped\n"
	"  redirect     likewise, by way of a devmap that holds the interface itself\n"
	"  --timestamp  note the hardware's receive timestamps\n";

int main(int argc, char **argv)
{
	enum { INTERFACE, TIMESTAMP };
	static const struct option options[] = {
		{ "interface", required_argument, NULL, INTERFACE },
		{ "timestamp", no_argument, NULL, TIMESTAMP },
		{ 0 },
	};
	const char *interface = NULL, *verdict;
	struct program program = { 0 };
	bool timestamp = false;
	int option, queue = -1;
	unsigned int index;
	uint64_t time;
	char ignored[256];

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case INTERFACE: interface = optarg; break;
		case TIMESTAMP: timestamp = true; break;
		default: die("%s", usage);
		}
	}
	if (!interface || optind != argc - 1)
		die("%s", usage);
	verdict = argv[optind];
	index = if_nametoindex(interface);
	if (!index)
		die("interface %s: %s", interface, strerror(errno));

	if (timestamp) {
		queue = map_create(BPF_MAP_TYPE_QUEUE, 0, sizeof(uint64_t), TIMESTAMPS);
		emit_push_timestamp(&program, queue);
	}
	if (!strcmp(verdict, "pass")) {
		emit_return(&program, XDP_PASS);
	} else if (!strcmp(verdict, "drop")) {
		emit_return(&program, XDP_DROP);
	} else if (!strcmp(verdict, "tx")) {
		emit_swap_addresses(&program);
		emit_return(&program, XDP_TX);
	} else if (!strcmp(verdict, "redirect")) {
		int devmap = map_create(BPF_MAP_TYPE_DEVMAP, sizeof(uint32_t), sizeof(uint32_t), 1);

		map_set(devmap, 0, index);
		emit_swap_addresses(&program);
		emit_redirect_to_device(&program, devmap);
	} else {
		die("%s", usage);
	}
	program_attach(&program, index, timestamp);
	puts("ready");
	fflush(stdout);
	while (read(STDIN_FILENO, ignored, sizeof(ignored)) > 0)
		;
	while (timestamp && queue_pop(queue, &time))
		printf("%llu\n", (unsigned long long)time);
	return 0;
}
