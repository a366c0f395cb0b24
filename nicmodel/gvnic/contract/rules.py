"""The contract, as rules: what a driver of a gVNIC has to do, why, and where it is written down.

There is no public data sheet. The sources are the drivers that the device's makers have published: what all of them do,
and what they say about the device in comments and checks. Unless it says otherwise, a file named as a source is one of
Linux' drivers/net/ethernet/google/gve. FreeBSD's driver is sys/dev/gve, DPDK's is drivers/net/gve.

What this model's own options ask of a driver is in their documentation alone; their rules are in their folders.
"""

from __future__ import annotations

from nicmodel.gvnic.options import rules as options
from nicmodel.gvnic.options.ddp import rules as ddp
from nicmodel.gvnic.options.deferred import rules as deferred
from nicmodel.gvnic.options.flush import rules as flush
from nicmodel.gvnic.options.owners import rules as owners
from nicmodel.observe.findings import Rule, Severity

#: The modules with the rules of this model's own options (docs/options.md, docs/ddp.md).
_OPTIONS = (options, deferred, flush, owners, ddp)

#: Areas by the first part of a rule's name.
AREAS = {
    "REG": "registers",
    "ADM": "admin queue",
    "DBL": "doorbells of queues",
    "RX": "receive",
    "TX": "transmit",
    "INT": "interrupts",
    "DMA": "memory of the device's own accesses",
    **{name: what for option in _OPTIONS for name, what in option.AREAS.items()},
}

_WARNING = Severity.WARNING

_REGISTERS = (
    Rule(
        "REG-001",
        "A write to BAR 0 is one register as a whole, from its offset on, and no other.",
        "The rest of the BAR is reserved; half a register is another value.",
        "gve_register.h: struct gve_registers; iPXE gve.c, gve_admin_enable, writes 4 bytes where the last one has 2",
    ),
    Rule(
        "REG-002",
        "device_status, the queue maxima and the event counter are not written.",
        "They are the device's; a write has no defined effect.",
        "gve_register.h: struct gve_registers",
    ),
    Rule(
        "REG-003",
        "driver_status is RUN or RESET, and no other bit.",
        "Both at once say start and stop; the rest is reserved.",
        "gve_register.h: enum gve_driver_status_flags; gve_adminq.c: gve_adminq_alloc, gve_adminq_release",
    ),
    Rule(
        "REG-004",
        "The admin queue's address is not 0 and a multiple of a command's 64 bytes.",
        "A slot that crosses the queue's end would be fetched from elsewhere.",
        "gve_adminq.c: gve_adminq_alloc",
    ),
    Rule(
        "REG-005",
        "The admin queue's length is a power of two, at least one command of 64 bytes.",
        "The slot of a command is its free-running number under a mask.",
        "gve_adminq.c: gve_adminq_alloc (adminq_mask)",
    ),
    Rule(
        "REG-006",
        "The whole admin queue is in memory that the device may read and write.",
        "Commands would not be fetched, nor their status be written.",
        "gve_adminq.c: gve_adminq_alloc (dma_pool_alloc)",
    ),
    Rule(
        "REG-007",
        "An admin queue is released before another is set up.",
        "The set-up of a second one takes everything from the first: queues end under the driver's feet.",
        "gve_adminq.c: gve_adminq_release; gve_main.c: gve_reset_recovery",
    ),
    Rule(
        "REG-008",
        "The admin doorbell is written only while there is an admin queue.",
        "Nobody will execute the commands.",
        "gve_adminq.c: gve_adminq_kick_cmd; gve.h: gve_get_admin_queue_ok",
    ),
    Rule(
        "REG-009",
        "The admin doorbell counts commands on: never back, never more than the ring holds beyond the event counter.",
        "Commands that wait would be overwritten, or old ones executed again.",
        "gve_adminq.c: gve_adminq_issue_cmd",
    ),
    Rule(
        "REG-010",
        "Queues are destroyed before the admin queue is released, unless the device asks for a reset, fails or hangs.",
        "What is under way is lost, and the other end is not told; it is the way out of an error, not of a shutdown.",
        "gve_main.c: gve_close, gve_teardown_priv_resources, gve_reset",
        _WARNING,
    ),
    Rule(
        "REG-011",
        "Bus mastering is on while the device has anything to do.",
        "The device can neither fetch a command or descriptor nor raise an interrupt.",
        "gve_main.c: gve_probe (pci_set_master)",
    ),
    Rule(
        "REG-012",
        "driver_version is written as printable text that ends in a newline, a byte at a time.",
        "The device keeps it for those who look for faults.",
        "gve_main.c: gve_write_version",
        _WARNING,
    ),
)

_ADMIN = (
    Rule(
        "ADM-CMD-001",
        "A command has one of the opcodes of the admin queue.",
        "The device refuses it.",
        "gve_adminq.h: enum gve_adminq_opcodes",
    ),
    Rule(
        "ADM-CMD-002",
        "A command's status word is 0 when it is handed over.",
        "A driver that reads too early takes an old status for the device's answer.",
        "gve_adminq.h: GVE_ADMINQ_COMMAND_UNSET; gve_adminq.c: gve_adminq_parse_err",
    ),
    Rule(
        "ADM-CMD-003",
        "Reserved fields and what follows a command's fields in its slot are 0.",
        "A later device may give them a meaning.",
        "gve_adminq.c: every command begins with memset(&cmd, 0, sizeof(cmd))",
        _WARNING,
    ),
    Rule(
        "ADM-CMD-004",
        "All memory that a command points at is the device's to read or write, in its whole length.",
        "The command fails, or the device writes into what is no longer the driver's.",
        "gve_adminq.c: dma_alloc_coherent before, dma_free_coherent after each command",
    ),
    Rule(
        "ADM-CMD-005",
        "Commands of a feature are sent only if the device offers the feature.",
        "The device refuses them.",
        "gve_adminq.c: gve_enable_supported_features",
    ),
    Rule(
        "ADM-CMD-006",
        "The memory for an answer, or with an argument, has the length that the command's structure needs.",
        "The answer does not fit, or the argument is cut short.",
        "gve_adminq.c: gve_adminq_describe_device, gve_adminq_get_ptype_map_dqo, gve_adminq_report_nic_ts",
    ),
    Rule(
        "ADM-CMD-007",
        "DESCRIBE_DEVICE asks for version 1 of the device descriptor.",
        "There is no other.",
        "gve_adminq.h: GVE_ADMINQ_DEVICE_DESCRIPTOR_VERSION",
    ),
    Rule(
        "ADM-CMD-008",
        "An extended command carries a known inner command in its whole length.",
        "The device refuses it.",
        "gve_adminq.c: gve_adminq_execute_extended_cmd",
    ),
    Rule(
        "ADM-CMD-009",
        "SET_DRIVER_PARAMETER sets the MTU, to at most what the device offers.",
        "Frames longer than that are not received.",
        "gve_adminq.h: enum gve_set_driver_param_types; FreeBSD gve_adminq.c: gve_adminq_set_mtu",
    ),
    Rule(
        "ADM-RES-001",
        "Device resources are configured once, and again only after they were deconfigured.",
        "The device still writes to the first counters, and the queues belong to them.",
        "gve_main.c: gve_setup_device_resources, gve_teardown_device_resources",
    ),
    Rule(
        "ADM-RES-002",
        "The queue format is one that the device offers.",
        "The device cannot read the descriptors.",
        "gve_adminq.c: gve_adminq_describe_device (priv->queue_format)",
    ),
    Rule(
        "ADM-RES-003",
        "There is at least one notification block, and a vector for each and for management.",
        "A block without a vector cannot interrupt.",
        "gve_main.c: gve_alloc_notify_blocks",
    ),
    Rule(
        "ADM-RES-004",
        "The doorbell indices of the blocks are at least four bytes apart.",
        "They would overwrite each other.",
        "gve_adminq.c: gve_adminq_configure_device_resources (irq_db_stride)",
    ),
    Rule(
        "ADM-RES-005",
        "The blocks' first vector is 0 or 1: the management vector comes after or before them.",
        "Link changes and reset requests are signalled on a vector that is not theirs.",
        "gve_adminq.c: GVE_NTFY_BLK_BASE_MSIX_IDX",
    ),
    Rule(
        "ADM-RES-006",
        "The counter array has as many entries as the device descriptor says.",
        "The device writes counters that are not there.",
        "gve_main.c: gve_alloc_counter_array; gve_adminq.c: gve_adminq_describe_device (num_event_counters)",
    ),
    Rule(
        "ADM-RES-007",
        "Queues are destroyed before the resources that they use are deconfigured.",
        "Rings and buffers are freed while the device may use them.",
        "gve_main.c: gve_close before gve_teardown_device_resources",
    ),
    Rule(
        "ADM-RES-008",
        "Only what is configured is deconfigured.",
        "The driver has lost track of the device's state.",
        "gve_main.c: gve_teardown_device_resources (gve_get_device_resources_ok)",
        _WARNING,
    ),
    Rule(
        "ADM-RES-009",
        "A driver asks what the device is before it configures it.",
        "Sizes, formats and the number of counters are guesses.",
        "gve_main.c: gve_init_priv; after a reset the answer of the first time holds",
    ),
    Rule(
        "ADM-RES-010",
        "The statistics region holds the header, and the driver's and the device's entries of the queues in use.",
        "The device's entries lie at its end: they would overwrite the driver's.",
        "gve_main.c: gve_alloc_stats_report, which has room for all queues; DPDK's and Linux 5.10's for those in use",
    ),
    Rule(
        "ADM-PGL-001",
        "A page list is registered under a number that is free.",
        "The device would exchange pages under a queue.",
        "gve_main.c: gve_register_qpl; gve.h: gve_tx_qpl_id, gve_get_rx_qpl_id",
    ),
    Rule(
        "ADM-PGL-002",
        "Only a registered page list is unregistered.",
        "The driver has lost track of what the device may use.",
        "gve_main.c: gve_unregister_qpl",
    ),
    Rule(
        "ADM-PGL-003",
        "A page list is unregistered after the queues that use it are destroyed.",
        "The pages are freed while the device reads and writes them.",
        "gve_main.c: gve_queues_stop (gve_destroy_rings, then gve_unregister_qpls)",
    ),
    Rule(
        "ADM-PGL-004",
        "Page lists have pages, of a power of two of at least 4096 bytes, and no more of them than the device allows.",
        "The device refuses the list.",
        "gve_main.c: gve_register_qpl (max_registered_pages)",
    ),
    Rule(
        "ADM-PGL-005",
        "All pages of a page list are the device's to read, or to write.",
        "Frames go to, or come from, where nothing is.",
        "gve_main.c: gve_alloc_queue_page_list, gve_qpl_dma_dir",
    ),
    Rule(
        "ADM-QUE-001",
        "Queues are created after the device resources are configured.",
        "There is no notification block, no counter and no queue format yet.",
        "gve_main.c: gve_setup_device_resources before gve_create_rings",
    ),
    Rule(
        "ADM-QUE-002",
        "A queue's number is below the maximum in BAR 0.",
        "There is no such queue.",
        "gve_main.c: gve_probe (max_tx_queues, max_rx_queues)",
    ),
    Rule(
        "ADM-QUE-003",
        "A queue is destroyed before it is created again.",
        "The device still uses the rings of the first.",
        "gve_main.c: gve_rx_queue_stop, gve_rx_queue_start",
    ),
    Rule(
        "ADM-QUE-004",
        "Only a queue that exists is destroyed.",
        "The driver has lost track of what the device may use.",
        "gve_main.c: gve_destroy_rings (gve_get_device_rings_ok)",
        _WARNING,
    ),
    Rule(
        "ADM-QUE-005",
        "The length of a ring is a power of two.",
        "Indices wrap by a mask.",
        "gve_tx_dqo.c: gve_tx_alloc_ring_dqo; gve_ethtool.c: gve_validate_req_ring_size",
    ),
    Rule(
        "ADM-QUE-006",
        "The length of a ring is within what the device offers.",
        "The device need not have the memory for it.",
        "gve_ethtool.c: gve_validate_req_ring_size",
        _WARNING,
    ),
    Rule(
        "ADM-QUE-007",
        "Rings begin at a multiple of their entries' size, not at 0.",
        "An entry would cross a page.",
        "gve_tx_dqo.c: gve_tx_alloc_ring_dqo (dma_alloc_coherent)",
    ),
    Rule(
        "ADM-QUE-008",
        "A ring lies in memory of the device's, as a whole, with the rights that it needs.",
        "Descriptors cannot be fetched, or completions not be written.",
        "gve_rx_dqo.c: gve_rx_alloc_ring_dqo (dma_alloc_coherent)",
    ),
    Rule(
        "ADM-QUE-009",
        "No two rings share memory.",
        "The entries of one are taken for those of the other.",
        "gve_rx_dqo.c: gve_rx_alloc_ring_dqo; gve_main.c: gve_queues_mem_alloc",
    ),
    Rule(
        "ADM-QUE-010",
        "A queue names a notification block that was configured.",
        "It could never interrupt.",
        "gve_main.c: gve_tx_idx_to_ntfy, gve_rx_idx_to_ntfy (gve.h)",
    ),
    Rule(
        "ADM-QUE-011",
        "A completion ring is at least as long as the ring whose entries it completes.",
        "Completions that were not read yet are overwritten.",
        "gve_tx_dqo.c: gve_tx_alloc_ring_dqo (“make sure we never overrun the completion queue”)",
    ),
    Rule(
        "ADM-QUE-012",
        "A completion ring is zero when its queue is created.",
        "An entry with a stale generation bit or sequence number is taken for a completion.",
        "gve_rx_dqo.c: gve_rx_init_ring_state_dqo; gve_rx.c: gve_rx_reset_ring_gqi",
    ),
    Rule(
        "ADM-QUE-013",
        "Receive buffers have at least 256 bytes, and no more than the length field of a completion can say.",
        "The device refuses the queue.",
        "gve_desc_dqo.h: struct gve_rx_compl_desc_dqo (packet_len); DPDK gve_ethdev.h: GVE_RX_MAX_BUF_SIZE_DQO",
    ),
    Rule(
        "ADM-QUE-014",
        "Header buffers are no longer than the device offers.",
        "The device does not write longer headers; without the offer it has no header split.",
        "gve_adminq.c: gve_enable_supported_features (header_buf_size)",
    ),
    Rule(
        "ADM-QUE-015",
        "A queue of a page-list format names a registered page list, one of GQI-RDA none.",
        "Its addresses are offsets in nothing, or offsets are taken for addresses.",
        "gve_adminq.c: gve_adminq_create_tx_queue, gve_adminq_get_create_rx_queue_cmd",
    ),
    Rule(
        "ADM-QUE-016",
        "enable_rsc is 0 or 1.",
        "The other bits are reserved.",
        "gve_adminq.c: gve_adminq_get_create_rx_queue_cmd",
        _WARNING,
    ),
    Rule(
        "ADM-QUE-017",
        "In the DQO formats receive queue 0 is not restarted by itself.",
        "The device does not support it.",
        "gve_main.c: gve_rx_queue_stop",
        _WARNING,
    ),
    Rule(
        "ADM-RSS-001",
        "An RSS key has the length that the device uses.",
        "The device refuses it.",
        "gve_adminq.c: gve_adminq_configure_rss; gve_adminq.c: gve_set_default_rss_sizes",
    ),
    Rule(
        "ADM-RSS-002",
        "The length of an RSS table is a power of two, at most the device's.",
        "The device refuses it.",
        "gve_adminq.c: gve_adminq_configure_rss; gve_adminq.c: gve_set_default_rss_sizes",
    ),
    Rule(
        "ADM-RSS-003",
        "An RSS table names queues below the maximum.",
        "Frames for them have nowhere to go.",
        "gve_main.c: gve_init_rss_config",
    ),
    Rule(
        "ADM-RSS-004",
        "The hash is Toeplitz, or left as it is.",
        "The device has no other.",
        "gve_adminq.c: gve_adminq_configure_rss",
    ),
    Rule(
        "ADM-RSS-005",
        "Only hash types that are defined are set.",
        "The others are reserved.",
        "gve_adminq.h: enum gve_rss_hash_type",
    ),
    Rule(
        "ADM-RUL-001",
        "A flow rule's location is below the number of rules that the device offers.",
        "There is no such place.",
        "gve_flow_rule.c: gve_add_flow_rule; gve_ethtool.c: gve_get_rxnfc",
    ),
    Rule(
        "ADM-RUL-002",
        "A flow rule has one of the ten flow types.",
        "The device cannot tell what to compare.",
        "gve_adminq.h: enum gve_adminq_flow_type",
    ),
    Rule(
        "ADM-RUL-003",
        "A flow rule leads to a queue below the maximum.",
        "Frames that match have nowhere to go.",
        "gve_flow_rule.c: gve_generate_flow_rule (ring_cookie)",
    ),
    Rule(
        "ADM-RUL-004",
        "Only a flow rule that is there is deleted.",
        "The driver has lost track of its rules.",
        "gve_flow_rule.c: gve_del_flow_rule; gve_adminq.c: gve_adminq_del_flow_rule",
        _WARNING,
    ),
    Rule(
        "ADM-RUL-005",
        "A flow rule is added or deleted, or all are reset.",
        "There is no other operation.",
        "gve_adminq.h: enum gve_adminq_flow_rule_cfg_opcode",
    ),
    Rule(
        "ADM-RUL-006",
        "Flow rules are queried by rule, by number or for their statistics.",
        "There is no other query.",
        "gve_adminq.h: enum gve_adminq_flow_rule_query_opcode",
    ),
)

_DOORBELLS = (
    Rule(
        "DBL-001",
        "A doorbell is one aligned 32-bit write.",
        "Half of one is another value, or another queue's.",
        "gve_dqo.h: gve_tx_put_doorbell_dqo; gve.h: db_bar2",
    ),
    Rule(
        "DBL-002",
        "Only doorbells that the device has named are written.",
        "A wrong index is some other queue's doorbell.",
        "gve.h: struct gve_queue_resources (db_index), struct gve_irq_db",
    ),
    Rule(
        "DBL-003",
        "A queue's doorbell is written after the queue is created.",
        "The device does not know the ring.",
        "gve_main.c: gve_create_rings",
    ),
    Rule(
        "DBL-004",
        "A queue's doorbell is not written after the queue is destroyed.",
        "It could be a new queue's by then, and its memory somebody else's.",
        "gve_main.c: gve_queues_stop (gve_turndown before gve_destroy_rings)",
    ),
    Rule(
        "DBL-005",
        "In the DQO formats a queue's doorbell holds an index in its ring.",
        "The device would fetch what is not in the ring.",
        "gve_rx_dqo.c: gve_rx_write_doorbell_dqo; gve_tx_dqo.c: gve_tx_update_tail",
    ),
)

_RECEIVE = (
    Rule(
        "RX-RNG-001",
        "A doorbell posts no more buffers than the ring has room for: all but one entry in the DQO formats.",
        "Buffers that the device owns are overwritten, or a full ring looks empty.",
        "gve_rx_dqo.c: gve_rx_post_buffers_dqo; gve_rx.c: gve_rx_refill_buffers",
    ),
    Rule(
        "RX-RNG-002",
        "In the DQO formats a doorbell posts at least eight buffers.",
        "The hardware asks for it.",
        "gve_desc_dqo.h: GVE_RX_BUF_THRESH_DQO (“HW requires this value to be at least 8”)",
        _WARNING,
    ),
    Rule(
        "RX-BUF-001",
        "A posted buffer is the device's to write, in the length that the queue was created with.",
        "Frames go to where nothing is, and are lost.",
        "gve_buffer_mgmt_dqo.c: gve_alloc_buffer",
    ),
    Rule(
        "RX-BUF-002",
        "On a queue with header split each posted header buffer is the device's to write.",
        "Headers go to where nothing is, and the frames are lost.",
        "gve_rx_dqo.c: gve_rx_alloc_hdr_bufs, gve_rx_post_buffers_dqo",
    ),
    Rule(
        "RX-BUF-003",
        "A buffer is posted once: the device owns it until its completion.",
        "Two frames are written over each other.",
        "gve_rx_dqo.c: gve_rx_dqo; gve_buffer_mgmt_dqo.c: gve_try_recycle_buf; gve_rx.c: gve_rx_flip_buff",
    ),
    Rule(
        "RX-BUF-004",
        "A buffer's id is not used again before its completion.",
        "The completion does not say which of the two buffers it means.",
        "gve_buffer_mgmt_dqo.c: gve_alloc_buf_state, gve_buf_state_is_allocated",
    ),
    Rule(
        "RX-BUF-005",
        "The reserved fields of a buffer descriptor are 0.",
        "A later device may give them a meaning.",
        "gve_desc_dqo.h: struct gve_rx_desc_dqo",
        _WARNING,
    ),
    Rule(
        "RX-BUF-006",
        "A posted descriptor stays as it is until its completion.",
        "The device may have fetched it before the change, or after.",
        "gve_rx_dqo.c: gve_rx_post_buffers_dqo writes beyond the tail only",
    ),
    Rule(
        "RX-BUF-007",
        "In the page-list formats posted buffers lie in pages of the queue's list.",
        "The device has no right to other memory.",
        "gve_buffer_mgmt_dqo.c: gve_alloc_qpl_page_dqo; gve_rx.c: gve_rx_prefill_pages",
    ),
    Rule(
        "RX-BUF-008",
        "A posted buffer shares no memory with a ring.",
        "A frame is written over descriptors or completions.",
        "gve_rx_dqo.c: gve_rx_alloc_ring_dqo allocates them apart",
    ),
    Rule(
        "RX-BUF-009",
        "No two posted header buffers share memory.",
        "Two headers are written over each other.",
        "gve_rx_dqo.c: gve_rx_post_buffers_dqo (hdr_bufs.addr + header_buf_size * buf_id)",
    ),
)

_TRANSMIT = (
    Rule(
        "TX-RNG-001",
        "An entry of the ring is used again after the device has reported it fetched, and one entry stays free.",
        "Descriptors are overwritten before they are sent, or a full ring looks empty.",
        "gve_tx_dqo.c: num_avail_tx_slots (head moves with descriptor completions); gve_tx.c: gve_tx_avail",
    ),
    Rule(
        "TX-DSC-001",
        "A descriptor has one of the defined types.",
        "The device cannot tell what it says.",
        "gve_desc_dqo.h: GVE_TX_PKT_DESC_DTYPE_DQO and others; gve_desc.h: GVE_TXD_STD and others",
    ),
    Rule(
        "TX-DSC-002",
        "A descriptor's piece of data is not empty.",
        "A length of 0 is not in the range of the field.",
        "gve_tx_dqo.c: gve_tx_fill_pkt_desc_dqo",
    ),
    Rule(
        "TX-DSC-003",
        "A descriptor's piece of data is the device's to read, in its whole length.",
        "The frame cannot be fetched, and is lost.",
        "gve_tx_dqo.c: gve_tx_add_skb_no_copy_dqo (dma_map_single)",
    ),
    Rule(
        "TX-DSC-004",
        "In the DQO formats the reserved fields of a descriptor are 0.",
        "A later device may give them a meaning.",
        "gve_desc_dqo.h: struct gve_tx_pkt_desc_dqo, gve_tx_context_cmd_dtype (gve_tx.c leaves them as they were)",
        _WARNING,
    ),
    Rule(
        "TX-DSC-005",
        "A posted descriptor stays as it is until the device has fetched it.",
        "The device may have fetched it before the change, or after.",
        "gve_tx_dqo.c: gve_tx_dqo writes the doorbell last",
    ),
    Rule(
        "TX-DSC-006",
        "In the page-list formats data lies in pages of the queue's list.",
        "The device has no right to other memory.",
        "gve_tx_dqo.c: gve_tx_buf_get_addr; gve_tx.c: gve_tx_alloc_fifo",
    ),
    Rule(
        "TX-PKT-001",
        "A packet that is not segmented has at most ten data descriptors.",
        "The hardware fetches no more; it stops the queue.",
        "gve_desc_dqo.h: GVE_TX_MAX_DATA_DESCS; gve_tx_dqo.c: gve_try_tx_skb",
    ),
    Rule(
        "TX-PKT-002",
        "A segment of a packet to be segmented takes its data from at most ten descriptors, the header counted as one.",
        "The hardware fetches no more; it stops the queue.",
        "gve_tx_dqo.c: gve_can_send_tso; DPDK gve_tx_dqo.c",
    ),
    Rule(
        "TX-PKT-003",
        "A packet that is not segmented has 17 to 9728 bytes.",
        "The hardware sends no other.",
        "gve_tx_dqo.c: gve_tx_add_skb_no_copy_dqo (“HW requires …”)",
    ),
    Rule(
        "TX-PKT-004",
        "All data descriptors of a packet have the same completion tag.",
        "The completion frees another packet than the one that was sent.",
        "gve_tx_dqo.c: gve_tx_fill_pkt_desc_dqo",
    ),
    Rule(
        "TX-PKT-005",
        "report_event is set on the last descriptor of a packet only.",
        "The hardware reports no other.",
        "gve_desc_dqo.h: GVE_TX_MIN_RE_INTERVAL; gve_tx_dqo.c: gve_tx_update_tail",
    ),
    Rule(
        "TX-PKT-006",
        "Descriptors with report_event are at least 32 apart.",
        "The completion ring is sized for one report in 32 descriptors.",
        "gve_desc_dqo.h: GVE_TX_MIN_RE_INTERVAL; gve_tx_dqo.c: gve_tx_update_tail",
    ),
    Rule(
        "TX-PKT-007",
        "Context descriptors come before a packet's data, each kind at most once.",
        "It is not defined which packet they belong to.",
        "gve_tx_dqo.c: gve_tx_add_skb_dqo; DPDK gve_tx_dqo.c",
    ),
    Rule(
        "TX-TAG-001",
        "A completion tag is not used again before its packet is completed.",
        "The completion does not say which of the two packets it means.",
        "gve_tx_dqo.c: gve_alloc_pending_packet, gve_handle_packet_completion",
    ),
    Rule(
        "TX-TAG-002",
        "Bit 15 of a completion tag is 0.",
        "In a completion it turns a packet that was sent into one that was missed.",
        "gve_desc_dqo.h: GVE_ALT_MISS_COMPL_BIT",
    ),
    Rule(
        "TX-TSO-001",
        "Segments have 88 to 9728 bytes of payload.",
        "The hardware sends no other.",
        "gve_desc_dqo.h: GVE_TX_MIN_TSO_MSS_DQO, GVE_TX_MAX_TSO_MSS_DQO; gve_tx_dqo.c: gve_can_send_tso",
    ),
    Rule(
        "TX-TSO-002",
        "The header to be repeated has a length, and ends before the packet does.",
        "There is nothing to segment.",
        "gve_tx_dqo.c: gve_prep_tso",
    ),
    Rule(
        "TX-TSO-003",
        "Header and payload of a packet to be segmented add up to the data of its descriptors.",
        "Bytes are sent that are not the packet's, or not sent.",
        "gve_tx_dqo.c: gve_tx_fill_tso_ctx_desc (tso_total_len)",
    ),
    Rule(
        "TX-TSO-004",
        "A packet to be segmented has at most 262143 bytes.",
        "The hardware takes no more.",
        "gve_tx_dqo.c: gve_prep_tso (“HW requires …”); gve.h: GVE_DQO_TX_MAX",
    ),
    Rule(
        "TX-TSO-005",
        "Only TCP and UDP are segmented, and the header's length is that of the packet's headers.",
        "The device cannot tell which fields of the header change.",
        "gve_tx_dqo.c: gve_prep_tso",
    ),
    Rule(
        "TX-TSO-006",
        "A TSO context descriptor has its tso bit set.",
        "The descriptor asks for nothing.",
        "gve_tx_dqo.c: gve_tx_fill_tso_ctx_desc",
    ),
    Rule(
        "TX-GQI-001",
        "In the GQI formats a packet begins with a packet descriptor, and segments and metadata follow it.",
        "The device cannot tell where a packet begins.",
        "gve_desc.h: struct gve_tx_pkt_desc; gve_tx.c: gve_tx_add_skb_no_copy",
    ),
    Rule(
        "TX-GQI-002",
        "In the GQI formats a packet says how many descriptors it has, and the doorbell covers them all.",
        "The device waits for the rest, and so do all packets behind.",
        "gve_tx.c: gve_tx_fill_pkt_desc (desc_cnt), gve_tx",
    ),
    Rule(
        "TX-GQI-003",
        "In the GQI formats the lengths of a packet's segments add up to the packet's length.",
        "Bytes are sent that are not the packet's, or not sent.",
        "gve_tx.c: gve_tx_fill_pkt_desc, gve_tx_fill_seg_desc",
    ),
    Rule(
        "TX-GQI-004",
        "In the GQI formats the place of the checksum is in the packet's first segment.",
        "The device looks for it there.",
        "gve_tx.c: gve_tx_add_skb_no_copy (“which will contain the checksum”)",
    ),
    Rule(
        "TX-GQI-005",
        "In the GQI formats a packet to be segmented says how much payload each segment has.",
        "There is no length to cut at.",
        "gve_tx.c: gve_tx_fill_seg_desc (mss)",
    ),
)

_INTERRUPTS = (
    Rule(
        "INT-001",
        "Only interrupt doorbells of configured notification blocks are written.",
        "The block has no vector.",
        "gve.h: gve_irq_doorbell; gve_adminq.c: gve_adminq_configure_device_resources (num_irq_dbs)",
    ),
    Rule(
        "INT-002",
        "Reserved bits of an interrupt doorbell are 0.",
        "A later device may give them a meaning.",
        "gve_dqo.h: GVE_ITR_ENABLE_BIT_DQO and others; gve_desc.h: GVE_IRQ_ACK and others",
        _WARNING,
    ),
    Rule(
        "INT-003",
        "The moderation interval is set (index 0) or left as it is (index 3).",
        "There is no other interval.",
        "gve_dqo.h: GVE_ITR_NO_UPDATE_DQO",
        _WARNING,
    ),
    Rule(
        "INT-004",
        "Interrupts are enabled only for blocks that serve a queue.",
        "The driver takes the block for another.",
        "gve_main.c: gve_turnup",
        _WARNING,
    ),
    Rule(
        "INT-005",
        "A vector that has fired is enabled again once its completions are handled.",
        "It masks itself when it fires: nothing that comes later is ever signalled.",
        "gve_main.c: gve_napi_poll_dqo, gve_napi_poll",
    ),
)

_MEMORY = (
    Rule(
        "DMA-001",
        "The rings of a queue stay mapped until the queue is destroyed.",
        "The device reads and writes where something else may be by then.",
        "gve_main.c: gve_queues_stop, gve_queues_mem_remove",
    ),
    Rule(
        "DMA-002",
        "A posted receive buffer stays mapped until its completion, or until the queue is destroyed.",
        "Frames go to where something else may be by then.",
        "gve_buffer_mgmt_dqo.c: gve_free_buffer; gve_rx_dqo.c: gve_rx_reset_ring_dqo",
    ),
    Rule(
        "DMA-003",
        "Data to be sent stays mapped until the packet's completion.",
        "What is sent is not what was meant.",
        "gve_tx_dqo.c: gve_handle_packet_completion (gve_unmap_packet)",
    ),
)

#: All rules by name, in the order of this file; those of the options come last.
RULES = {
    rule.name: rule
    for area in (
        _REGISTERS,
        _ADMIN,
        _DOORBELLS,
        _RECEIVE,
        _TRANSMIT,
        _INTERRUPTS,
        _MEMORY,
        *(one.RULES for one in _OPTIONS),
    )
    for rule in area
}
