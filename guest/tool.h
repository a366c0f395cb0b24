/* What every tool here needs. */
#ifndef TOOL_H
#define TOOL_H

#include <stddef.h>

/* A number with an optional unit: "64M". Exits with a message that names `option` if it is none. */
size_t parse_size(const char *text, const char *option);

double now(void);
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
