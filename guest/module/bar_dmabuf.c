// SPDX-License-Identifier: GPL-2.0
/*
 * Export the memory of a PCI device, its BAR 2, as dma-bufs that other devices reach by peer-to-peer DMA.
 *
 * The device is QEMU's ivshmem-plain, which has no function of its own: its memory stands for an accelerator's. The
 * exporter serves importers that attach statically and cannot be told to let go, as devmem TCP is (net/core/devmem.c):
 * a range stays exported until the last reference to its dma-buf is gone. Until then the module and the device stay
 * too: rmmod fails, and the removal of the device waits.
 *
 * /proc/iomem shows which ranges are taken, and by which programs.
 */
#include <linux/completion.h>
#include <linux/dma-buf-mapping.h>
#include <linux/dma-buf.h>
#include <linux/fs.h>
#include <linux/iommu.h>
#include <linux/ioport.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/pci-p2pdma.h>
#include <linux/pci.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "bar_dmabuf.h"

#define MEMORY_BAR 2 /* docs/specs/ivshmem-spec.rst */

struct bar {
	struct pci_dev *pdev;
	struct resource *memory; /* its children are the exported ranges */
	struct miscdevice misc;
	char path[40];
	refcount_t users; /* open files, dma-bufs, and the driver's own */
	struct completion unused;
};

struct bar_range {
	struct resource memory;
	struct bar *bar;
	char owner[TASK_COMM_LEN];
};

static void put_bar(struct bar *bar)
{
	if (refcount_dec_and_test(&bar->users))
		complete(&bar->unused);
}

static int range_attach(struct dma_buf *dmabuf, struct dma_buf_attachment *attachment)
{
	struct bar_range *range = dmabuf->priv;

	/* It says in the kernel's log what is wrong with the topology. The error is dma_map_sgtable()'s for this. */
	if (pci_p2pdma_distance(range->bar->pdev, attachment->dev, true) < 0)
		return -EREMOTEIO;
	return 0;
}

static struct sg_table *range_map(struct dma_buf_attachment *attachment, enum dma_data_direction direction)
{
	struct bar_range *range = attachment->dmabuf->priv;
	struct iommu_domain *domain = iommu_get_domain_for_dev(attachment->dev);
	struct phys_vec memory = { .paddr = range->memory.start, .len = resource_size(&range->memory) };
	struct sg_table *sgt;

	sgt = dma_buf_phys_vec_to_sgt(attachment, pcim_p2pdma_provider(range->bar->pdev, MEMORY_BAR), &memory, 1,
				      memory.len, direction);
	if (IS_ERR(sgt))
		return sgt;
	/* A switch passes a bus address on before an IOMMU sees it. QEMU has its IOMMU translate all addresses. */
	if (domain && domain->type & __IOMMU_DOMAIN_PAGING && sg_dma_address(sgt->sgl) == memory.paddr) {
		dma_buf_free_sgt(attachment, sgt, direction);
		dev_warn(attachment->dev, "cannot reach %s below the switch: QEMU's IOMMU is in between\n",
			 pci_name(range->bar->pdev));
		return ERR_PTR(-EREMOTEIO);
	}
	return sgt;
}

static int range_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	struct bar_range *range = dmabuf->priv;

	vma->vm_page_prot = pgprot_writecombine(vma->vm_page_prot);
	return vm_iomap_memory(vma, range->memory.start, resource_size(&range->memory));
}

static void range_release(struct dma_buf *dmabuf)
{
	struct bar_range *range = dmabuf->priv;

	release_resource(&range->memory);
	put_bar(range->bar);
	kfree(range);
}

static const struct dma_buf_ops range_ops = {
	.attach = range_attach,
	.map_dma_buf = range_map,
	.unmap_dma_buf = dma_buf_free_sgt,
	.mmap = range_mmap,
	.release = range_release,
};

static int export_range(struct bar *bar, const struct bar_dmabuf_range *wanted)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	u64 room = resource_size(bar->memory);
	struct dma_buf *dmabuf;
	struct bar_range *range;
	int result;

	if (!wanted->size || !PAGE_ALIGNED(wanted->offset) || !PAGE_ALIGNED(wanted->size))
		return -EINVAL;
	if (wanted->offset > room || wanted->size > room - wanted->offset)
		return -ERANGE;
	range = kzalloc(sizeof(*range), GFP_KERNEL_ACCOUNT);
	if (!range)
		return -ENOMEM;
	range->bar = bar;
	get_task_comm(range->owner, current);
	range->memory.name = range->owner;
	range->memory.flags = IORESOURCE_MEM | IORESOURCE_BUSY;
	range->memory.start = bar->memory->start + wanted->offset;
	range->memory.end = range->memory.start + wanted->size - 1;
	result = request_resource(bar->memory, &range->memory);
	if (result)
		goto free_range;

	info.ops = &range_ops;
	info.size = wanted->size;
	info.flags = O_RDWR;
	info.priv = range;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf)) {
		result = PTR_ERR(dmabuf);
		goto release_memory;
	}
	refcount_inc(&bar->users);
	result = dma_buf_fd(dmabuf, O_CLOEXEC);
	if (result < 0)
		dma_buf_put(dmabuf);
	return result;

release_memory:
	release_resource(&range->memory);
free_range:
	kfree(range);
	return result;
}

static struct bar *bar_of(struct file *file)
{
	return container_of(file->private_data, struct bar, misc);
}

static int bar_open(struct inode *inode, struct file *file)
{
	refcount_inc(&bar_of(file)->users);
	return 0;
}

static int bar_release(struct inode *inode, struct file *file)
{
	put_bar(bar_of(file));
	return 0;
}

static loff_t bar_llseek(struct file *file, loff_t offset, int whence)
{
	return fixed_size_llseek(file, offset, whence, resource_size(bar_of(file)->memory));
}

static long bar_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct bar_dmabuf_range wanted;

	if (command != BAR_DMABUF_EXPORT)
		return -ENOTTY;
	if (copy_from_user(&wanted, (void __user *)argument, sizeof(wanted)))
		return -EFAULT;
	return export_range(bar_of(file), &wanted);
}

static const struct file_operations bar_fops = {
	.owner = THIS_MODULE,
	.open = bar_open,
	.release = bar_release,
	.llseek = bar_llseek,
	.unlocked_ioctl = bar_ioctl,
};

static int bar_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct bar *bar;
	int result;

	bar = devm_kzalloc(&pdev->dev, sizeof(*bar), GFP_KERNEL);
	if (!bar)
		return -ENOMEM;
	result = pcim_enable_device(pdev);
	if (result)
		return result;
	if (!(pci_resource_flags(pdev, MEMORY_BAR) & IORESOURCE_MEM) || !pci_resource_len(pdev, MEMORY_BAR))
		return dev_err_probe(&pdev->dev, -ENODEV, "no memory in BAR %d\n", MEMORY_BAR);
	bar->memory = devm_request_mem_region(&pdev->dev, pci_resource_start(pdev, MEMORY_BAR),
					      pci_resource_len(pdev, MEMORY_BAR), KBUILD_MODNAME);
	if (!bar->memory)
		return -EBUSY;
	result = pcim_p2pdma_init(pdev);
	if (result)
		return result;

	bar->pdev = pdev;
	refcount_set(&bar->users, 1);
	init_completion(&bar->unused);
	snprintf(bar->path, sizeof(bar->path), KBUILD_MODNAME "/%s", pci_name(pdev));
	bar->misc = (struct miscdevice){
		.minor = MISC_DYNAMIC_MINOR,
		.name = bar->path,
		.fops = &bar_fops,
		.parent = &pdev->dev,
	};
	pci_set_drvdata(pdev, bar);
	result = misc_register(&bar->misc);
	if (!result)
		pci_info(pdev, "%llu bytes of memory at /dev/%s\n", (u64)resource_size(bar->memory), bar->path);
	return result;
}

static void bar_remove(struct pci_dev *pdev)
{
	struct bar *bar = pci_get_drvdata(pdev);

	misc_deregister(&bar->misc);
	put_bar(bar);
	if (completion_done(&bar->unused))
		return;
	pci_warn(pdev, "in use: removal waits until all of its dma-bufs are closed and unbound\n");
	wait_for_completion_state(&bar->unused, TASK_IDLE);
}

static const struct pci_device_id bar_ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_REDHAT_QUMRANET, 0x1110) },
	{}
};
MODULE_DEVICE_TABLE(pci, bar_ids);

static struct pci_driver bar_driver = {
	.name = KBUILD_MODNAME,
	.id_table = bar_ids,
	.probe = bar_probe,
	.remove = bar_remove,
};
module_pci_driver(bar_driver);

MODULE_DESCRIPTION("The memory of a PCI device, exported as dma-bufs for peer-to-peer DMA");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("DMA_BUF");
