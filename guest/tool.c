#include "tool.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

_Noreturn void die(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(1);
}

double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec * 1e-9;
}

size_t parse_size(const char *text, const char *option)
{
	char *end;
	size_t size = strtoull(text, &end, 0);

	switch (*end) {
	case 'G': size <<= 10; /* fall through */
	case 'M': size <<= 10; /* fall through */
	case 'k': case 'K': size <<= 10; end++;
	}
	if (end == text || *end)
		die("--%s: '%s' is not a number", option, text);
	return size;
}
