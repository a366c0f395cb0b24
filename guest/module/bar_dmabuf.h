/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * How a program takes a dma-buf out of a device's memory: open /dev/bar_dmabuf/<PCI address>, then this ioctl. The end
 * of the file (lseek) is the memory's size.
 */
#ifndef BAR_DMABUF_H
#define BAR_DMABUF_H

#include <linux/ioctl.h>
#include <linux/types.h>

/*
 * A range of the memory: multiples of the page size. Nobody else gets any of it until the last reference to the dma-buf
 * is gone: descriptors, mappings, and attachments such as a binding to a NIC's queue. Its content stays as it was.
 */
struct bar_dmabuf_range {
	__u64 offset;
	__u64 size;
};

/*
 * Returns the dma-buf's descriptor (close-on-exec), or fails: EINVAL (no multiple of the page size), ERANGE (beyond the
 * end), EBUSY (a dma-buf has some of it already).
 */
#define BAR_DMABUF_EXPORT _IOW('b', 0xd0, struct bar_dmabuf_range)

#endif
