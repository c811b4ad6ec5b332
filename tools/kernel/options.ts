// SPDX-License-Identifier: Apache-2.0
/** What the test guests' own kernel is made of, over the smallest one (`make tinyconfig`). */

const options = (names: string): string[] => names.trim().split(/\s+/);

/** Options to enable, without `CONFIG_`. */
export const KERNEL_OPTIONS: readonly string[] = [
  // A console and the initramfs
  ...options(
    '64BIT PRINTK PRINTK_TIME TTY UNIX98_PTYS SERIAL_8250 SERIAL_8250_CONSOLE BLK_DEV_INITRD RD_GZIP',
  ),
  ...options('BINFMT_ELF BINFMT_SCRIPT PROC_FS PROC_SYSCTL SYSFS DEVTMPFS TMPFS SHMEM MEMFD_CREATE MMU'),
  // What node runs on
  ...options(
    'FUTEX EPOLL EVENTFD SIGNALFD TIMERFD AIO MULTIUSER UNIX NET FILE_LOCKING INOTIFY_USER POSIX_TIMERS',
  ),
  ...options('HIGH_RES_TIMERS ADVISE_SYSCALLS RSEQ MEMBARRIER SMP'),
  // PCI and an IOMMU
  ...options(
    'ACPI PCI PCI_MSI PCI_QUIRKS X86_X2APIC IRQ_REMAP IOMMU_SUPPORT INTEL_IOMMU INTEL_IOMMU_DEFAULT_ON',
  ),
  // VFIO, every interface of it
  ...options('IOMMUFD VFIO VFIO_GROUP VFIO_CONTAINER VFIO_IOMMU_TYPE1 VFIO_DEVICE_CDEV VFIO_PCI VFIO_MDEV'),
  ...options('DEBUG_FS VFIO_DEBUGFS MODULES SAMPLES SAMPLE_VFIO_MDEV_MTTY'),
];
