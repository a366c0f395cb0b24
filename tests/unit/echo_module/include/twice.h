/* As a header of the kernel's: not beside what is compiled. */
int outside(int value);

static inline int twice(int value)
{
	return outside(value) + outside(value + 1);
}
