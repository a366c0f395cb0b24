"""The contract, as rules: what a driver of an idpf has to do, why, and where it is written down.

There are two sources. "OASIS" is idpf_specification.md of the OASIS IDPF technical committee, with the name of a
section. Any other file is one of Linux' drivers/net/ethernet/intel/idpf, but libie/controlq.c, which is beside that
folder, and virtchnl2.h, which is in include/linux/net/intel. Where the two differ, the rule is what both allow.
"""

from __future__ import annotations

from nicmodel.observe.findings import Rule, Severity

#: Areas by the first part of a rule's name.
AREAS = {
    "REG": "registers",
    "MBX": "mailbox",
    "MSG": "messages",
    "ORD": "order of messages",
    "CAP": "capabilities",
    "VPT": "vport",
    "QUE": "queues",
    "TXQ": "settings of transmit queues",
    "RXQ": "settings of receive queues",
    "VEC": "vectors",
    "RSS": "receive side scaling",
    "RUL": "flow rules",
    "FLT": "filters and loopback",
    "DBL": "tails of queues",
    "RX": "receive",
    "TX": "transmit",
    "INT": "interrupts",
    "DMA": "memory of the device's own accesses",
}

_WARNING = Severity.WARNING
_SUMMARY = "OASIS, TX Packet and Descriptors Building Rules Summary"
_LIMITS = "OASIS, Device Resource Limits"
_APIS = "OASIS, Virtchannel APIs"
_QUEUE_LIFE = "OASIS, Queue Initialization and Teardown"

_REGISTERS = (
    Rule(
        "REG-001",
        "A write to BAR 0 is one register of 32 bits, at its offset.",
        "What lies between registers is reserved, and half a register is another value.",
        "idpf_lan_vf_regs.h; virtchnl2.h: struct virtchnl2_vector_chunk, virtchnl2_queue_reg_chunk",
    ),
    Rule(
        "REG-002",
        "rstat, and tails that the split queue model does not have, are not written.",
        "The first is the device's; completion rings are filled by the device alone.",
        "idpf_vf_dev.c: idpf_vf_reset_reg_init; OASIS, Out of Order Split Queue Model",
    ),
    Rule(
        "REG-003",
        "Bus mastering is on while the device has anything to do.",
        "The device can neither read a message or descriptor nor raise an interrupt.",
        "idpf_main.c: idpf_probe (pci_set_master)",
    ),
)

_MAILBOX = (
    Rule(
        "MBX-001",
        "The rings of the mailbox begin at a multiple of 128 bytes, not at 0.",
        "The low bits of the address are not the device's to keep.",
        "OASIS, Mailbox Initialization Flow (“must be 128B aligned”)",
    ),
    Rule(
        "MBX-002",
        "The rings of the mailbox are in memory that the device may read and write, as a whole.",
        "Messages would not be read, nor be marked as done.",
        "controlq.c: libie_ctlq_alloc_queue_res (dma_alloc_coherent)",
    ),
    Rule(
        "MBX-003",
        "The two rings of the mailbox share no memory.",
        "Replies are taken for messages.",
        "controlq.c: libie_ctlq_alloc_queue_res",
    ),
    Rule(
        "MBX-004",
        "The heads of the mailbox are set to 0, and to nothing else.",
        "They are the device's to move.",
        "controlq.c: libie_ctlq_init_regs; OASIS, Mailbox Initialization Flow",
    ),
    Rule(
        "MBX-005",
        "The length of a ring of the mailbox is its number of entries, with the enable bit, and no other bit.",
        "A ring of 0 entries can hold nothing; the bits between are errors that the device reports.",
        "controlq.c: libie_ctlq_init_regs; OASIS, registers ATQLEN and ARQLEN",
    ),
    Rule(
        "MBX-006",
        "Address and length of a ring of the mailbox are not written while it is enabled.",
        "Only the control plane ends it; what is under way is lost.",
        "OASIS, Mailbox Queues Disable",
    ),
    Rule(
        "MBX-007",
        "A tail of the mailbox is a place in its ring.",
        "The device would take descriptors from behind the ring.",
        "controlq.c: libie_ctlq_send (“if (unlikely(++ntu == ctlq->ring_len)) ntu = 0”)",
    ),
    Rule(
        "MBX-008",
        "Messages are handed over only while the mailbox is enabled.",
        "Nobody reads them.",
        "OASIS, Mailbox Queues Operation (“reads the ATQLEN.Enable field”)",
    ),
    Rule(
        "MBX-009",
        "No more descriptors are handed over than the ring has room for; a tail does not move back.",
        "Messages that wait are overwritten, or old ones executed again.",
        "controlq.c: libie_ctlq_send_desc_avail, libie_ctlq_post_rx_buffs (num_to_post)",
    ),
    Rule(
        "MBX-010",
        "There are buffers for replies before a message is sent.",
        "The reply has no place to go.",
        "controlq.c: libie_ctlq_alloc_queue_res (libie_ctlq_post_rx_buffs before libie_ctlq_init_regs)",
    ),
    Rule(
        "MBX-011",
        "A descriptor for a reply says that it has a buffer, of 4096 bytes; none of the device's bits is set.",
        "A reply is cut short, or an old one is taken for new.",
        "OASIS, RX Descriptor Command Submit Format; controlq.c: libie_ctlq_prep_rx_desc",
    ),
    Rule(
        "MBX-012",
        "The buffer for a reply is the device's to write, in its whole length.",
        "The reply is lost.",
        "controlq.c: libie_ctlq_post_rx_buffs (libeth_rx_alloc)",
    ),
    Rule(
        "MBX-013",
        "A buffer for replies is handed over once, until there is a reply in it.",
        "One reply is overwritten by another.",
        "controlq.c: libie_ctlq_post_rx_buffs (one buffer of the page pool for each descriptor)",
    ),
)

_MESSAGES = (
    Rule(
        "MSG-001",
        "The opcode of a descriptor is that of a message to the control plane, 0x0801.",
        "Any other is rejected.",
        "OASIS, TX Descriptor Command Submit Format; controlq.h: LIBIE_CTLQ_SEND_MSG_TO_CP",
    ),
    Rule(
        "MSG-002",
        "A descriptor's flags are RD and BUF where there is a payload, and none where there is not.",
        "The device reads no payload, or one that is not there; its own bits say that it is done already.",
        "OASIS, TX Descriptor Command Submit Format; controlq.c: LIBIE_CTLQ_DESC_QWORD0",
    ),
    Rule(
        "MSG-003",
        "A payload has at most 4096 bytes, all of which are the device's to read.",
        "The message is refused.",
        "OASIS, TX Descriptor Command Submit Format; controlq.c: libie_ctlq_xn_process_send",
    ),
    Rule(
        "MSG-004",
        "Fields of the descriptor that the device fills in, or that are reserved, are 0.",
        "The device may take them for a function, a type, or flags.",
        "OASIS, TX Descriptor Command Submit Format; controlq.c: libie_ctlq_tx_desc_from_msg",
        _WARNING,
    ),
    Rule(
        "MSG-005",
        "A message has a number that drivers send.",
        "The device refuses it.",
        "virtchnl2.h: enum virtchnl2_op",
    ),
    Rule(
        "MSG-006",
        "A payload has all that its structure, and the numbers in it, say.",
        "The device refuses it, or reads what was there before.",
        "virtchnl2.h: the structures; idpf_virtchnl.c: struct_size in each message",
    ),
    Rule(
        "MSG-007",
        "Padding in payloads is 0.",
        "A later version may give it a meaning.",
        "idpf_virtchnl.c: payloads are zeroed (kzalloc, “= { }”)",
        _WARNING,
    ),
    Rule(
        "ORD-001",
        "VERSION is the first message after a reset, and is sent once.",
        "Until then nothing is agreed on.",
        f"{_APIS}: VIRTCHNL2_OP_VERSION; idpf_virtchnl.c: idpf_vc_core_init",
    ),
    Rule(
        "ORD-002",
        "GET_CAPS is the second message after a reset, and is sent once.",
        "Numbers of queues and vectors, and what may be used at all, are guesses.",
        f"{_APIS}: VIRTCHNL2_OP_GET_CAPS; idpf_virtchnl.c: idpf_vc_core_init",
    ),
    Rule(
        "ORD-003",
        "The version that a driver says is 2.0.",
        "Structures of another one are others.",
        "virtchnl2.h: VIRTCHNL2_VERSION_MAJOR_2; idpf_virtchnl.c: idpf_send_ver_msg",
    ),
    Rule(
        "CAP-001",
        "Messages of a feature are sent only if its capability was granted.",
        "The device refuses them, or takes the driver for malicious.",
        "OASIS, Key Concepts (“a feature without negotiation”); idpf.h: idpf_is_cap_ena",
    ),
    Rule(
        "CAP-002",
        "Queues have header split and RSC only if the capability was granted.",
        "Frames come otherwise than the driver expects.",
        "OASIS, Key Concepts (“a feature without negotiation”); idpf_lib.c: idpf_vport_set_hsplit",
    ),
)

_VPORT = (
    Rule(
        "VPT-001",
        "A message about a vport names one that was created.",
        "The device refuses it.",
        f"{_APIS}: “Shall be sent only if VIRTCHNL_OP_CREATE_VPORT is successful”",
    ),
    Rule(
        "VPT-002",
        "A vport is created in a queue model that there is: the split one.",
        "The device refuses it.",
        "idpf_virtchnl.c: idpf_send_create_vport_msg (idpf_is_queue_model_split)",
    ),
    Rule(
        "VPT-003",
        "A vport has at least one queue of each type, and no more than the capabilities say.",
        "There is nothing to send or receive with, or the device refuses it.",
        "OASIS, vPort Initialization and Teardown; idpf_txrx.c: idpf_vport_calc_total_qs",
    ),
    Rule(
        "VPT-004",
        "There are no more vports than the capabilities say.",
        "The device refuses it.",
        "idpf_virtchnl.c: idpf_vport_alloc_max_qs; idpf_lib.c: idpf_init_task (default_num_vports)",
    ),
    Rule(
        "VPT-005",
        "A vport is disabled before it is destroyed.",
        "Frames are under way to queues that end.",
        "OASIS, vPort Initialization and Teardown; idpf_lib.c: idpf_vport_dealloc (idpf_vport_stop)",
    ),
    Rule(
        "VPT-006",
        "A vport is enabled when it is not, and disabled when it is.",
        "The driver has lost track of the device's state.",
        f"{_APIS}: VIRTCHNL2_OP_DISABLE_VPORT; idpf_lib.c: idpf_vport_open, idpf_vport_stop",
        _WARNING,
    ),
    Rule(
        "VPT-007",
        "A vport is enabled when it has queues that are.",
        "Frames come, and find none.",
        f"{_APIS}: VIRTCHNL2_OP_ENABLE_VPORT; idpf_lib.c: idpf_vport_open",
    ),
)

_QUEUES = (
    Rule(
        "QUE-001",
        "A message names queues that the vport has, by type and identifier.",
        "The device refuses it.",
        f"{_APIS}: “allocated q_id only”; idpf_virtchnl.c: idpf_vport_get_queue_ids",
    ),
    Rule(
        "QUE-002",
        "CONFIG_TX_QUEUES is about transmit and completion queues, CONFIG_RX_QUEUES about receive and buffer queues.",
        "The structures differ.",
        "virtchnl2.h: struct virtchnl2_txq_info, struct virtchnl2_rxq_info",
    ),
    Rule(
        "QUE-003",
        "The model of a queue is that of its vport: split.",
        "Descriptors of another model are others.",
        "idpf_virtchnl.c: idpf_fill_txq_config_chunk, idpf_fill_rxq_config_chunk",
    ),
    Rule(
        "QUE-004",
        "A ring has a multiple of 32 entries, at least 32 and at most 8160.",
        "The device refuses it.",
        f"{_LIMITS}; idpf_txrx.h: IDPF_REQ_DESC_MULTIPLE, IDPF_MAX_DESCS",
    ),
    Rule(
        "QUE-005",
        "A ring begins at a multiple of its entries' size, not at 0.",
        "An entry would cross a page.",
        "idpf_txrx.c: idpf_tx_desc_alloc, idpf_rx_desc_alloc (dma_alloc_coherent)",
    ),
    Rule(
        "QUE-006",
        "The ring of a queue that is enabled is in memory of the device's, as a whole, with the rights that it needs.",
        "Descriptors cannot be read, or completions not be written.",
        "idpf_txrx.c: idpf_tx_desc_alloc, idpf_rx_desc_alloc (dma_alloc_coherent)",
    ),
    Rule(
        "QUE-007",
        "No two rings of queues that are enabled share memory.",
        "The entries of one are taken for those of the other.",
        "idpf_txrx.c: idpf_tx_desc_alloc_all, idpf_rx_desc_alloc_all",
    ),
    Rule(
        "QUE-008",
        "A completion ring, of either way, is zero when its queue is enabled.",
        "An entry with a stale generation bit is taken for a completion.",
        "OASIS, RX Completion Queues and TX Completion Queues (“clear all the generation bits”)",
    ),
    Rule(
        "QUE-009",
        "A queue is configured while it is disabled.",
        "The device may be in the midst of its ring.",
        f"{_QUEUE_LIFE}; idpf_txrx.c: idpf_qp_enable",
    ),
    Rule(
        "QUE-010",
        "A queue is enabled when it was configured.",
        "The device does not know where its ring is.",
        f"{_APIS}: VIRTCHNL2_OP_ENABLE_QUEUES; idpf_lib.c: idpf_vport_open",
    ),
    Rule(
        "QUE-011",
        "A transmit queue that is used has its completion queue enabled, a receive queue its buffer queues.",
        "It has no place for completions, or no buffers.",
        "OASIS, TX Queues, RX Buffer Queues; Queue Initialization and Teardown (which is first is left open)",
    ),
    Rule(
        "QUE-012",
        "A queue is enabled when it is not, and disabled when it is.",
        "The driver has lost track of the device's state.",
        f"{_APIS}: VIRTCHNL2_OP_DISABLE_QUEUES",
        _WARNING,
    ),
    Rule(
        "QUE-013",
        "Queues are disabled before they are deleted, or their vport is destroyed.",
        "Rings and buffers are freed while the device may use them.",
        f"{_QUEUE_LIFE} (“Transition from ENABLED to FREE … is prohibited”); idpf_lib.c: idpf_vport_stop",
    ),
    Rule(
        "QUE-014",
        "ADD_QUEUES asks for at least one queue of each type, and no more than the capabilities say.",
        "The device refuses it.",
        f"{_APIS}: VIRTCHNL2_OP_ADD_QUEUES; idpf_virtchnl.c: idpf_send_add_queues_msg",
    ),
    Rule(
        "TXQ-001",
        "A transmit queue's scheduling mode is by queue or by flow, as that of its completion queue.",
        "The size of a completion depends on it.",
        "virtchnl2.h: enum virtchnl2_txq_sched_mode; idpf_virtchnl.c: idpf_fill_complq_config_chunk",
    ),
    Rule(
        "TXQ-002",
        "A transmit queue names a completion queue that the vport has.",
        "Its completions have no place to go.",
        "idpf_virtchnl.c: idpf_fill_txq_config_chunk (tx_compl_queue_id)",
    ),
    Rule(
        "TXQ-003",
        "A completion ring is at least as long as the transmit ring.",
        "Completions that were not read yet are overwritten.",
        "OASIS, TX Completion Queues; idpf_txrx.c: idpf_vport_init_num_qs (complq_desc_count)",
    ),
    Rule(
        "TXQ-004",
        "Transmit queues that share a completion queue have relative identifiers of their own.",
        "A completion does not say of which queue it is.",
        "OASIS, In Order Split Queue Model (“must be unique among all TX queues”); idpf_txrx.c: rel_q_id",
    ),
    Rule(
        "TXQ-005",
        "A transmit queue has no flags but that for miss completions, and no peer.",
        "There are no other flags, and peers are for features that were not negotiated. Intel's driver outside of the"
        " kernel welcomes miss completions, which need not be sent.",
        "idpf_virtchnl.c: idpf_fill_txq_config_chunk; specification of OASIS, virtchnl2_txq_flags",
        _WARNING,
    ),
    Rule(
        "RXQ-001",
        "A receive queue takes completions of format 2, and no others.",
        "The device writes no others in the split model.",
        "virtchnl2_lan_desc.h: VIRTCHNL2_RXDID_2_FLEX_SPLITQ; idpf_virtchnl.c: idpf_fill_rxq_config_chunk",
    ),
    Rule(
        "RXQ-002",
        "Receive descriptors have 32 bytes, and the flags of a receive queue say so.",
        "Where header split is used there are no others.",
        "OASIS, Header Split; virtchnl2.h: VIRTCHNL2_RX_DESC_SIZE_32BYTE",
    ),
    Rule(
        "RXQ-003",
        "A buffer has a multiple of 128 bytes, at least 128 and at most 16256.",
        "The length field of a completion cannot say more.",
        f"{_LIMITS}; idpf_txrx.h: IDPF_RX_MAX_BUF_SZ",
    ),
    Rule(
        "RXQ-004",
        "A buffer queue with header split has header buffers of a multiple of 64 bytes, at least 64 and at most 960.",
        "The length field of a completion cannot say more.",
        f"{_LIMITS}; idpf_virtchnl.c: idpf_fill_bufq_config_chunk (hdr_buffer_size)",
    ),
    Rule(
        "RXQ-005",
        "The two buffer queues of a receive queue have header buffers of the same size.",
        "The header is split off before the buffer queue is chosen.",
        "OASIS, RX Buffer Queue Association Decision",
    ),
    Rule(
        "RXQ-006",
        "Buffers of the first buffer queue are no smaller than those of the second.",
        "What does not fit the second goes to the first.",
        "OASIS, RX Buffer Queue Association Decision; idpf_txrx.c: idpf_rx_bufs_init",
    ),
    Rule(
        "RXQ-007",
        "The buffer queues of a receive queue are the vport's, differ, and are no other queue's.",
        "Two queues would take the same buffers.",
        "OASIS, RX Buffer Queues; idpf_virtchnl.c: idpf_fill_rxq_config_chunk (rx_bufq1_id, rx_bufq2_id)",
    ),
    Rule(
        "RXQ-008",
        "The ring of a receive queue has as many entries as the rings of its buffer queues together.",
        "Completions that were not read yet are overwritten.",
        "OASIS, RX Completion Queues; idpf_txrx.h: IDPF_RX_BUFQ_DESC_COUNT",
    ),
    Rule(
        "RXQ-009",
        "The longest packet of a receive queue is no longer than the vport's maximum.",
        "The device receives no such frames.",
        "virtchnl2.h: struct virtchnl2_rxq_info (max_pkt_size), struct virtchnl2_create_vport (max_mtu)",
    ),
)

_VECTORS = (
    Rule(
        "VEC-001",
        "ALLOC_VECTORS asks for at least one vector, and for no more than the capabilities say besides the mailbox's.",
        "The device refuses it.",
        "idpf_lib.c: idpf_intr_req; virtchnl2.h: struct virtchnl2_alloc_vectors",
    ),
    Rule(
        "VEC-002",
        "Vectors are given back as they were given, once.",
        "The driver has lost track of what is its own.",
        "idpf_virtchnl.c: idpf_send_dealloc_vectors_msg (req_vec_chunks)",
    ),
    Rule(
        "VEC-003",
        "A queue is mapped to a vector that was allocated, and not to the mailbox's.",
        "It could not interrupt.",
        "idpf_virtchnl.c: idpf_get_vec_ids, idpf_send_map_unmap_queue_vector_msg",
    ),
    Rule(
        "VEC-004",
        "A queue's interrupts wait for one of the two intervals of its vector.",
        "There is no other.",
        "OASIS, Interrupt Capabilities; virtchnl2.h: VIRTCHNL2_ITR_IDX_0, VIRTCHNL2_ITR_IDX_1",
    ),
    Rule(
        "VEC-005",
        "Only transmit and receive queues are mapped; a completion queue interrupts for its transmit queue.",
        "The device refuses it.",
        "idpf_virtchnl.c: idpf_send_map_unmap_queue_set_vector_msg",
    ),
    Rule(
        "VEC-006",
        "A queue is mapped while it is disabled.",
        "An interrupt may be lost on the way from one vector to another.",
        f"{_APIS}: VIRTCHNL2_OP_MAP_QUEUE_VECTOR (“Cannot be done for queues that are already Enabled”)",
    ),
    Rule(
        "VEC-007",
        "A queue is unmapped from the vector that it is mapped to.",
        "The driver has lost track of what is mapped.",
        "idpf_virtchnl.c: idpf_send_map_unmap_queue_vector_msg",
        _WARNING,
    ),
    Rule(
        "VEC-008",
        "Vectors are given back when no queue is mapped to them.",
        "The device may raise what is somebody else's by then.",
        "idpf_lib.c: idpf_vport_stop (unmap) before idpf_intr_rel",
    ),
)

_STEERING = (
    Rule(
        "RSS-001",
        "The RSS key has as many bytes as the vport says.",
        "The device refuses it.",
        "idpf_virtchnl.c: idpf_send_set_rss_key_msg; virtchnl2.h: rss_key_size",
    ),
    Rule(
        "RSS-002",
        "Entries of the RSS table that are set are within the size that the vport says.",
        "The device refuses them.",
        "idpf_virtchnl.c: idpf_send_set_rss_lut_msg; virtchnl2.h: rss_lut_size",
    ),
    Rule(
        "RSS-003",
        "The RSS table names receive queues of the vport, counted from 0.",
        "Frames go nowhere.",
        "OASIS, RSS (“LUT with queues that are not part of the vPort”); idpf_txrx.c: idpf_fill_dflt_rss_lut",
    ),
    Rule(
        "RSS-004",
        "Flows that are to be hashed are of kinds that were granted.",
        "Others have no hash.",
        f"{_APIS}: VIRTCHNL2_OP_SET_RSS_HASH (“Should comply with the advertised capability”)",
    ),
    Rule(
        "RUL-001",
        "The number of a flow rule is below the maximum that the vport says.",
        "The device has no place for it.",
        "idpf_ethtool.c: idpf_add_flow_steer (flow_steer_max_rules)",
    ),
    Rule(
        "RUL-002",
        "A flow rule is about headers that the vport offers: TCP or UDP over IPv4.",
        "The device refuses it.",
        "idpf_ethtool.c: idpf_sideband_flow_type_ena; virtchnl2.h: sideband_flow_caps",
    ),
    Rule(
        "RUL-003",
        "A flow rule has one action: a receive queue.",
        "The device refuses it.",
        "idpf_ethtool.c: idpf_sideband_action_ena; virtchnl2.h: sideband_flow_actions",
    ),
    Rule(
        "RUL-004",
        "A flow rule leads to a receive queue of the vport, counted from 0.",
        "Frames go nowhere.",
        "idpf_ethtool.c: idpf_add_flow_steer (q_index >= num_rxq)",
    ),
    Rule(
        "RUL-005",
        "Only flow rules that are there are deleted.",
        "The driver has lost track of which there are.",
        "idpf_ethtool.c: idpf_del_flow_steer",
        _WARNING,
    ),
    Rule(
        "FLT-001",
        "An address is a primary or an extra one.",
        "The device does not know what for.",
        "OASIS, MAC Filter Offload; virtchnl2.h: enum virtchnl2_mac_addr_type",
    ),
    Rule(
        "FLT-002",
        "A primary address is that of a station, and not 0.",
        "Nobody can send to it.",
        "OASIS, MAC Filter Offload; idpf_lib.c: idpf_set_mac (is_valid_ether_addr)",
    ),
    Rule(
        "FLT-003",
        "Only addresses that were added are deleted.",
        "The driver has lost track of which there are.",
        "idpf_virtchnl.c: idpf_add_del_mac_filters; idpf_lib.c: idpf_find_mac_filter",
        _WARNING,
    ),
    Rule(
        "FLT-004",
        "Promiscuous modes are for stations, for groups, or both.",
        "Other bits are reserved.",
        "OASIS, Promiscuous Offload; virtchnl2.h: enum virtchnl2_promisc_flags",
    ),
    Rule(
        "FLT-005",
        "Loopback is switched by 0 or 1.",
        "The device may take another value for either.",
        "virtchnl2.h: struct virtchnl2_loopback; idpf_virtchnl.c: idpf_send_ena_dis_loopback_msg",
        _WARNING,
    ),
)

_TAILS = (
    Rule(
        "DBL-001",
        "A tail that is written is that of a queue that the vport has.",
        "There is no such queue.",
        "idpf_virtchnl.c: idpf_queue_reg_init; virtchnl2.h: struct virtchnl2_queue_reg_chunk",
    ),
    Rule(
        "DBL-002",
        "A tail is a place in its queue's ring.",
        "The device ignores it, or takes descriptors from behind the ring.",
        "idpf_txrx.c: idpf_tx_buf_hw_update, idpf_rx_buf_hw_update",
    ),
    Rule(
        "DBL-003",
        "The tail of a transmit queue is not moved while the queue is disabled.",
        "What was posted before is sent when the queue is enabled again, from memory that is freed.",
        "idpf_txrx.c: idpf_qp_enable (writel(0)), idpf_tx_start; idpf_lib.c: idpf_vport_stop (netif_tx_disable)",
    ),
)

_RECEIVE = (
    Rule(
        "RX-RNG-001",
        "The device is never given more buffers than the ring holds but one; the tail never moves back.",
        "Buffers that it owns are overwritten.",
        "idpf_txrx.h: IDPF_RX_BUFQ_WORKING_SET; idpf_txrx.c: idpf_rx_post_buf_desc",
    ),
    Rule(
        "RX-BUF-001",
        "A posted buffer is the device's to write, in its whole length.",
        "The frame is lost.",
        "idpf_txrx.c: idpf_rx_post_buf_desc (libeth_rx_alloc)",
    ),
    Rule(
        "RX-BUF-002",
        "On a buffer queue with header split each entry has a header buffer, which is the device's to write.",
        "The frame is lost.",
        "OASIS, Header Split; idpf_txrx.c: idpf_rx_post_buf_desc (hdr_addr)",
    ),
    Rule(
        "RX-BUF-003",
        "A buffer is posted once: the device owns it until its completion.",
        "One frame overwrites another.",
        "idpf_txrx.c: idpf_rx_post_buf_desc, idpf_rx_splitq_clean",
    ),
    Rule(
        "RX-BUF-004",
        "The identifiers of the buffers that the device owns differ, in each buffer queue.",
        "A completion does not say which buffer it is about.",
        "OASIS, RSC SW/Device Handshake Principles (“unique ‘buffer identifier’”); idpf_txrx.c: idpf_rx_post_buf_desc",
    ),
    Rule(
        "RX-BUF-005",
        "Reserved bits of a posted descriptor are 0.",
        "A later device may give them a meaning.",
        "virtchnl2_lan_desc.h: struct virtchnl2_splitq_rx_buf_desc",
        _WARNING,
    ),
    Rule(
        "RX-BUF-006",
        "A posted descriptor is not changed.",
        "The device may have read it before, or may not.",
        "idpf_txrx.c: idpf_rx_buf_hw_update (tail after the descriptors)",
    ),
    Rule(
        "RX-BUF-008",
        "A posted buffer shares no memory with a ring.",
        "Frames overwrite descriptors.",
        "idpf_txrx.c: idpf_rx_desc_alloc, idpf_rx_buf_alloc_all",
    ),
    Rule(
        "RX-BUF-009",
        "A header buffer is that of one posted descriptor.",
        "One header overwrites another.",
        "idpf_txrx.c: idpf_rx_hdr_buf_alloc_all",
    ),
)

_TRANSMIT = (
    Rule(
        "TX-RNG-001",
        "No more descriptors are posted than the ring has room for but one; the tail never moves back.",
        "Descriptors that the device has not read are overwritten.",
        "idpf_txrx.h: IDPF_DESC_UNUSED; idpf_txrx.c: idpf_tx_splitq_clean",
    ),
    Rule(
        "TX-DSC-001",
        "A descriptor is a context, or data of the kind that the queue's scheduling mode has.",
        "The packet is dropped.",
        f"{_SUMMARY}; idpf_lan_txrx.h: enum idpf_tx_desc_dtype_value",
    ),
    Rule(
        "TX-DSC-002",
        "A data descriptor has data.",
        "The packet is dropped.",
        f"{_SUMMARY} (“must be valid”); idpf_txrx.c: idpf_tx_splitq_map",
    ),
    Rule(
        "TX-DSC-003",
        "The data of a descriptor is the device's to read.",
        "The packet is dropped.",
        "idpf_txrx.c: idpf_tx_splitq_map (dma_map_single, skb_frag_dma_map)",
    ),
    Rule(
        "TX-DSC-004",
        "Reserved bits of a data descriptor are 0.",
        "They have meanings for features that were not negotiated.",
        "OASIS, TX Data Descriptor; idpf_txrx.c: idpf_tx_splitq_build_flow_desc",
        _WARNING,
    ),
    Rule(
        "TX-DSC-005",
        "A posted descriptor is not changed.",
        "The device may have read it before, or may not.",
        "idpf_txrx.c: idpf_tx_buf_hw_update (tail after the descriptors)",
    ),
    Rule(
        "TX-PKT-001",
        "A packet has at most as many data descriptors as the capabilities say.",
        "The device may take the driver for malicious.",
        f"{_SUMMARY}; virtchnl2.h: max_sg_bufs_per_tx_pkt",
    ),
    Rule(
        "TX-PKT-002",
        "So has each segment that a packet is cut into, its header included.",
        "The device may take the driver for malicious.",
        f"{_SUMMARY}; idpf_txrx.c: idpf_chk_tso_segment",
    ),
    Rule(
        "TX-PKT-003",
        "A packet has at least 17 bytes, and at most those of a frame.",
        "The device may take the driver for malicious.",
        f"{_SUMMARY}; idpf_txrx.h: IDPF_TX_MIN_PKT_LEN",
    ),
    Rule(
        "TX-PKT-004",
        "The data descriptors of a packet have the same completion tag.",
        "Which of them is returned, is not said.",
        f"{_SUMMARY}; idpf_txrx.c: idpf_tx_splitq_map (compl_tag)",
        _WARNING,
    ),
    Rule(
        "TX-PKT-005",
        "A completion is asked for by the last descriptor of a packet only.",
        "The driver would free a part of a packet.",
        f"{_SUMMARY}; idpf_txrx.c: idpf_tx_splitq_frame (eop_cmd)",
    ),
    Rule(
        "TX-PKT-006",
        "Packets that ask for a report of descriptors begin at least 64 descriptors behind each other.",
        "Completions come so often that their ring overflows.",
        f"{_LIMITS}: IDPF_TX_SPLITQ_RE_MIN_GAP; idpf_txrx.c: idpf_tx_splitq_need_re",
    ),
    Rule(
        "TX-PKT-007",
        "Context descriptors come before the data of their packet, each kind once.",
        "The packet is cut wrongly, or dropped.",
        f"{_SUMMARY}; {_LIMITS}",
    ),
    Rule(
        "TX-PKT-008",
        "A report of descriptors is asked for on queues in flow scheduling mode only.",
        "In the other mode a completion says how far the ring is done anyway.",
        f"{_SUMMARY} (“RE flag can be set only for queues that operate in ‘out of order, split queue’ model”)",
    ),
    Rule(
        "TX-TAG-001",
        "A completion tag is used again when its packet is completed.",
        "A completion does not say which packet it is of.",
        "OASIS, Out of Order Split Queue Model; idpf_txrx.c: idpf_tx_get_free_buf_id, idpf_tx_clean_bufs",
    ),
    Rule(
        "TX-TSO-001",
        "Segments have at least 88 bytes of payload, and fit a frame.",
        "The device may take the driver for malicious.",
        f"{_LIMITS}: IDPF_TX_TSO_MIN_MSS; idpf_txrx.c: idpf_features_check",
    ),
    Rule(
        "TX-TSO-002",
        "The header of a packet that is cut has bytes, and fewer than the packet.",
        "There is nothing to cut.",
        "OASIS, TX TSO Context Descriptor; idpf_txrx.c: idpf_tso",
    ),
    Rule(
        "TX-TSO-003",
        "Header and payload, as the context says them, are as many bytes as the data descriptors have.",
        "The packet is cut wrongly.",
        "OASIS, TX TSO Context Descriptor (“should match exactly the TLEN plus the TSO header size”)",
    ),
    Rule(
        "TX-TSO-004",
        "A packet that is cut has at most 262143 bytes.",
        "The length field cannot say more.",
        f"{_LIMITS}: Max LSO payload length",
    ),
    Rule(
        "TX-TSO-005",
        "The header of a packet that is cut ends with that of TCP or UDP.",
        "The device changes bytes of the payload in each segment.",
        "OASIS, Transmit Segmentation Offload; idpf_txrx.c: idpf_tso",
    ),
    Rule(
        "TX-TSO-006",
        "A context of segmentation has its tso bit set.",
        "It would be ignored.",
        f"{_SUMMARY}; idpf_txrx.c: IDPF_TX_FLEX_CTX_DESC_CMD_TSO",
    ),
)

_INTERRUPTS = (
    Rule(
        "INT-001",
        "Registers of vectors are written for vectors that were allocated.",
        "They are nobody's, or somebody else's.",
        "idpf_virtchnl.c: idpf_get_reg_intr_vecs; idpf_vf_dev.c: idpf_vf_intr_reg_init",
    ),
    Rule(
        "INT-002",
        "Reserved bits of a vector's control register are 0.",
        "A later device may give them a meaning.",
        "idpf_lan_vf_regs.h: VF_INT_DYN_CTLN; OASIS, Interrupts",
        _WARNING,
    ),
    Rule(
        "INT-003",
        "A vector is enabled, or polled with write-back on its intervals, not both.",
        "There is no such mode.",
        "OASIS, Enable/disable Interrupts for a Vector; idpf_txrx.h: idpf_vport_intr_set_wb_on_itr",
    ),
    Rule(
        "INT-004",
        "An interval has at most 12 bits.",
        "The rest is cut off: interrupts come far more often.",
        "idpf_lan_vf_regs.h: VF_INT_ITRN; idpf_txrx.h: IDPF_ITR_MAX",
    ),
    Rule(
        "INT-005",
        "A vector that has fired is enabled again once its completions are handled.",
        "It masks itself when it fires: nothing that comes later is ever signalled.",
        "idpf_txrx.c: idpf_vport_splitq_napi_poll, idpf_vport_intr_update_itr_ena_irq",
    ),
    Rule(
        "INT-006",
        "A software interrupt says which interval it waits for.",
        "Any of them may be meant.",
        "OASIS, SW Initiated Interrupt; idpf_txrx.c: idpf_vport_intr_buildreg_itr",
        _WARNING,
    ),
)

_MEMORY = (
    Rule(
        "DMA-001",
        "The rings of a queue stay mapped until the queue is disabled.",
        "The device reads and writes where something else may be by then.",
        "idpf_lib.c: idpf_vport_stop (disable before idpf_vport_queues_rel)",
    ),
    Rule(
        "DMA-002",
        "A posted receive buffer stays mapped until its completion, or until its queue is disabled.",
        "Frames go to where something else may be by then.",
        "idpf_txrx.c: idpf_rx_buf_rel_bufq",
    ),
    Rule(
        "DMA-003",
        "Data to be sent stays mapped until the packet's completion.",
        "What is sent is not what was meant.",
        "idpf_txrx.c: idpf_tx_clean_bufs (libeth_tx_complete)",
    ),
)

#: All rules by name, in the order of this file.
RULES = {
    rule.name: rule
    for area in (
        _REGISTERS, _MAILBOX, _MESSAGES, _VPORT, _QUEUES, _VECTORS, _STEERING, _TAILS, _RECEIVE, _TRANSMIT, _INTERRUPTS,
        _MEMORY,
    )
    for rule in area
}  # fmt: skip
