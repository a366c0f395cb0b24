/*
 * One end of a TCP connection that a benchmark measures; it runs at both ends, in the guest and on the host.
 *
 *   tcp_peer sink PORT                      receive and forget
 *   tcp_peer send ADDRESS PORT SECONDS      send as much as goes
 *   tcp_peer echo PORT                      send back what comes
 *   tcp_peer ask ADDRESS PORT SECONDS       send one byte, wait for it, and again
 *
 * Those that listen print "ready", serve one connection after the other, and are ended by a signal. Those that connect,
 * and the sink at the end of each connection, print one line of JSON: bytes and seconds, from the first byte to the
 * end; or the rounds and their time: median and 99th percentile.
 */
#define _GNU_SOURCE
#include "tool.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHUNK (1 << 20) /* bytes of a read or write, as devmem_receiver asks for */
#define MAX_ROUNDS 1000000

static const char usage[] = "usage: tcp_peer sink|echo PORT\n"
			    "       tcp_peer send|ask ADDRESS PORT SECONDS";

static char buffer[CHUNK];
static double rounds[MAX_ROUNDS];

static void no_delay(int fd)
{
	int on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

static int listen_at(int port)
{
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT };
	int on = 1, listener = socket(AF_INET6, SOCK_STREAM, 0);

	address.sin6_port = htons(port);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (listener < 0 || bind(listener, (void *)&address, sizeof(address)) || listen(listener, 1))
		die("listening on port %d: %s", port, strerror(errno));
	puts("ready");
	return listener;
}

static int connect_to(const char *name, int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (inet_pton(AF_INET, name, &address.sin_addr) != 1)
		die("'%s' is no IPv4 address", name);
	if (fd < 0 || connect(fd, (void *)&address, sizeof(address)))
		die("connecting to %s port %d: %s", name, port, strerror(errno));
	no_delay(fd);
	return fd;
}

static void print_transfer(size_t bytes, double seconds)
{
	printf("{\"bytes\": %zu, \"seconds\": %.6f}\n", bytes, seconds);
}

static void sink(int fd)
{
	size_t bytes = 0;
	double started = 0;
	ssize_t received;

	while ((received = read(fd, buffer, CHUNK)) > 0) {
		if (!started)
			started = now();
		bytes += received;
	}
	print_transfer(bytes, started ? now() - started : 0);
}

static void echo(int fd)
{
	ssize_t received;

	no_delay(fd);
	while ((received = read(fd, buffer, CHUNK)) > 0)
		if (write(fd, buffer, received) != received)
			return;
}

/* What is sent is not the same byte again and again, so that nothing on the way has an easier time with it. */
static void send_for(int fd, double seconds)
{
	double started = now();
	size_t bytes = 0;
	ssize_t sent;

	for (size_t at = 0; at < CHUNK; at++)
		buffer[at] = at * 2654435761u >> 24;
	while (now() - started < seconds) {
		sent = write(fd, buffer, CHUNK);
		if (sent < 0)
			die("write: %s", strerror(errno));
		bytes += sent;
	}
	shutdown(fd, SHUT_WR);
	if (read(fd, buffer, 1)) /* until the other end has taken all of it, and closed */
		die("the other end did not close the connection");
	print_transfer(bytes, now() - started);
}

static int ascending(const void *left, const void *right)
{
	double difference = *(const double *)left - *(const double *)right;

	return (difference > 0) - (difference < 0);
}

static void ask(int fd, double seconds)
{
	double started = now(), begin = started;
	size_t count = 0;

	while (count < MAX_ROUNDS && begin - started < seconds) {
		double end;

		if (write(fd, buffer, 1) != 1 || read(fd, buffer, 1) != 1)
			die("the other end closed the connection");
		end = now();
		rounds[count++] = end - begin;
		begin = end;
	}
	qsort(rounds, count, sizeof(*rounds), ascending);
	printf("{\"rounds\": %zu, \"median_us\": %.2f, \"p99_us\": %.2f}\n", count, rounds[count / 2] * 1e6,
	       rounds[count * 99 / 100] * 1e6);
}

int main(int argc, char **argv)
{
	const char *role = argc > 1 ? argv[1] : "";

	setlinebuf(stdout);
	if (argc == 3 && (!strcmp(role, "sink") || !strcmp(role, "echo"))) {
		int listener = listen_at(parse_size(argv[2], "port"));

		for (;;) {
			int fd = accept(listener, NULL, NULL);

			if (fd < 0)
				die("accept: %s", strerror(errno));
			*role == 's' ? sink(fd) : echo(fd);
			close(fd);
		}
	}
	if (argc == 5 && (!strcmp(role, "send") || !strcmp(role, "ask"))) {
		int fd = connect_to(argv[2], parse_size(argv[3], "port"));

		*role == 's' ? send_for(fd, atof(argv[4])) : ask(fd, atof(argv[4]));
		return 0;
	}
	die("%s", usage);
}
