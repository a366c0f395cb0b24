/* A module for tests/unit/test_vm_coverage.py, which has its line numbers. Compiled, with gcc 12, by
 *
 *   gcc -O2 -g -fno-pic -mcmodel=kernel -fcf-protection=branch -Iinclude -ffile-prefix-map=$PWD=drivers/echo \
 *       -c -o echo.o $PWD/echo.c && ld -r --build-id=sha1 -o echo.ko echo.o
 */
#include <twice.h>

__attribute__((cold)) void complain(int value);
int count;

__attribute__((noinline)) static int sum(int first, int last)
{
	int result = 0;

	for (int number = first; number <= last; number++)
		result += outside(number);
	return result;
}

int echo(int what, int much)
{
	count++;
	if (what > 2)
		complain(much);
	if (what == 1)
		return sum(0, much);
	if (what == 2)
		return twice(much) + sum(much, 2 * much);
	return -1;
}

int never(int value)
{
	return outside(value) * 3 + 0x1234567;
}

__attribute__((section(".init.text"))) int init_module(void)
{
	return outside(0x42);
}

__attribute__((section(".exit.text"))) void cleanup_module(void)
{
	outside(0x43);
}
