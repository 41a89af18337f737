/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The boot sector of a machine that has nothing but a disk, for test-qemu.sh.  By the
 * BIOS it reads what the disk has, says so on the serial port, writes, reads back what
 * it has written, and ends qemu through isa-debug-exit: 0x10 all is well, 0x11 what was
 * read is wrong or cannot be read, 0x12 the disk cannot be written.
 *
 * On the disk are, by sectors: 1, a text that ends with a NUL; CHECKED and those behind
 * it, in each 4 bytes the number of the sector; WRITTEN and those behind it, what this
 * program writes.
 *
 * Assembled with as --32 -defsym, linked at 0x7c00.
 */

  .code16
  .set buffer, 0x8000           /* 32 KiB, to the end of the segment */

  .globl start
start:
  ljmp $0, $main
main:
  xorw %ax, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  movw $start, %sp
  movb %dl, drive
  cld

  /* Say what disk this is. */
  movl $1, packet_sector
  movw $1, packet_count
  call read
  movw $buffer, %si
  call print

  /* Many sectors at once, over the border of a cluster. */
  movl $CHECKED, packet_sector
  movw $64, packet_count
  call read
  movw $buffer, %di
  movl $CHECKED, %eax
  movw $64, %dx
next_sector:
  movw $128, %cx
next_word:
  cmpl (%di), %eax
  jne wrong
  addw $4, %di
  loop next_word
  incl %eax
  decw %dx
  jnz next_sector

  /* Write, and look whether it is there. */
  movl $WRITTEN, packet_sector
  movw $8, packet_count
  movl $PATTERN, %eax
  call fill
  movb $0x43, %ah
  call disk
  jc read_only
  xorl %eax, %eax
  call fill
  call read
  movw $buffer, %di
  movw $1024, %cx
  movl $PATTERN, %eax
  repe scasl
  jne wrong
  movw $all_is_well, %si
  movb $0x10, %bl
  jmp end

wrong:
  movw $wrong_text, %si
  movb $0x11, %bl
  jmp end
read_only:
  movw $read_only_text, %si
  movb $0x12, %bl
end:
  call print
  movb %bl, %al
  outb %al, $0xf4
stop:
  hlt
  jmp stop

/* 8 sectors of the buffer with %eax. */
fill:
  movw $buffer, %di
  movw $1024, %cx
  rep stosl
  ret

read:
  movb $0x42, %ah
  call disk
  jc wrong
  ret

/* %ah: 0x42 reads, 0x43 writes.  Carry: an error. */
disk:
  xorb %al, %al
  movw $packet, %si
  movb drive, %dl
  int $0x13
  ret

/* The text at %si, on the first serial port. */
print:
  lodsb
  testb %al, %al
  jz printed
  movb %al, %ah
  movw $0x3fd, %dx
busy:
  inb %dx, %al
  testb $0x20, %al
  jz busy
  movw $0x3f8, %dx
  movb %ah, %al
  outb %al, %dx
  jmp print
printed:
  ret

all_is_well:    .asciz "read and written\n"
wrong_text:     .asciz "WRONG\n"
read_only_text: .asciz "read, but not written\n"
drive:          .byte 0

  .balign 4
packet:
  .byte 16, 0
packet_count:
  .word 0
  .word buffer, 0
packet_sector:
  .quad 0

  .org 510
  .byte 0x55, 0xaa
