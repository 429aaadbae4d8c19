//! Takes the ELF kernel out of a distribution's `vmlinuz`.
//!
//! A bzImage is a real-mode stub, a decompressor, and the compressed kernel; the boot protocol's
//! setup header says where the last one is. A VMM with PVH boot wants the plain ELF, and starts it
//! without paying for decompression on every boot.
//!
//! Every offset is checked against the file before it is used, and the unpacked size is bounded.

use anyhow::{Context as _, Result, bail, ensure};

/// The frame magic of `lz4 -l`, the format the kernel's build uses.
const LZ4_LEGACY_MAGIC: u32 = 0x184c_2102;
/// A legacy frame's blocks unpack to at most this.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;
/// No kernel we could boot is larger.
const MAX_KERNEL: usize = 256 << 20;

/// Returns the ELF image inside a bzImage.
pub(crate) fn extract_elf(image: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(image)?;
    let elf = match payload {
        [0x02, 0x21, 0x4c, 0x18, ..] => unpack_lz4_legacy(payload)?,
        [0x7f, b'E', b'L', b'F', ..] => payload.to_vec(),
        _ => bail!(
            "the kernel is packed in a way we cannot open (it starts with {:02x?}); LZ4 is expected",
            &payload[..payload.len().min(4)]
        ),
    };
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "the unpacked kernel is no 64-bit ELF file");
    Ok(elf)
}

/// The compressed kernel, as the setup header describes it.
fn payload(image: &[u8]) -> Result<&[u8]> {
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "the kernel has no Linux boot header");
    let version = u16::from_le_bytes([byte(image, 0x206)?, byte(image, 0x207)?]);
    ensure!(version >= 0x208, "boot protocol {version:#x} is too old to name its payload");
    // Zero means four, for historical reasons.
    let setup_sectors = match byte(image, 0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + word(image, 0x248)?;
    let length = word(image, 0x24c)?;
    start
        .checked_add(length)
        .and_then(|end| image.get(start..end))
        .context("the kernel's header points behind its end")
}

/// Unpacks blocks until the four bytes that end the payload: the size of the whole.
fn unpack_lz4_legacy(payload: &[u8]) -> Result<Vec<u8>> {
    let tail = payload.len().checked_sub(4).context("the packed kernel is too short")?;
    let expected = word(payload, tail)?;
    ensure!(expected <= MAX_KERNEL, "the packed kernel claims {expected} bytes");
    ensure!(word(payload, 0)? == LZ4_LEGACY_MAGIC as usize, "the LZ4 frame has no magic");

    let mut elf = Vec::with_capacity(expected);
    let mut at = 4;
    while at < tail {
        let length = word(payload, at)?;
        at += 4;
        let block = at
            .checked_add(length)
            .filter(|&end| end <= tail)
            .and_then(|end| payload.get(at..end))
            .context("an LZ4 block of the kernel is cut short")?;
        let unpacked = lz4_flex::block::decompress(block, LZ4_LEGACY_BLOCK)
            .context("an LZ4 block of the kernel is damaged")?;
        ensure!(elf.len() + unpacked.len() <= expected, "the kernel unpacks to too many bytes");
        elf.extend_from_slice(&unpacked);
        at += length;
    }
    ensure!(elf.len() == expected, "the kernel unpacks to {} of {expected} bytes", elf.len());
    Ok(elf)
}

fn byte(bytes: &[u8], at: usize) -> Result<u8> {
    bytes.get(at).copied().context("the kernel file is too short")
}

fn word(bytes: &[u8], at: usize) -> Result<usize> {
    let field = bytes.get(at..at + 4).context("the kernel file is too short")?;
    let field: [u8; 4] = field.try_into().context("four bytes are a word")?;
    Ok(u32::from_le_bytes(field) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ELF: &[u8] = b"\x7fELF\x02\x01 and the rest of a kernel, of a kernel, of a kernel";

    fn legacy_frame(content: &[u8]) -> Vec<u8> {
        // One block of literals only: token, length bytes, the bytes themselves.
        let mut block = vec![0xf0];
        let mut left = content.len() - 15;
        while left >= 255 {
            block.push(255);
            left -= 255;
        }
        block.push(u8::try_from(left).expect("below 255"));
        block.extend_from_slice(content);
        let mut frame = LZ4_LEGACY_MAGIC.to_le_bytes().to_vec();
        frame.extend_from_slice(&u32::try_from(block.len()).expect("small").to_le_bytes());
        frame.extend_from_slice(&block);
        frame.extend_from_slice(&u32::try_from(content.len()).expect("small").to_le_bytes());
        frame
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0u8; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        let length = u32::try_from(payload.len()).expect("small");
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(&[0u8; 16]);
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn unpacks_an_lz4_kernel() {
        let elf = extract_elf(&bzimage(&legacy_frame(ELF))).expect("a sound image");
        assert_eq!(elf, ELF);
    }

    #[test]
    fn takes_an_unpacked_kernel_as_it_is() {
        assert_eq!(extract_elf(&bzimage(ELF)).expect("a sound image"), ELF);
    }

    #[test]
    fn refuses_whatever_is_damaged() {
        let sound = bzimage(&legacy_frame(ELF));
        let mut cases: Vec<(&str, Vec<u8>)> = vec![
            ("empty", Vec::new()),
            ("cut in the header", sound[..0x210].to_vec()),
            ("cut in the payload", sound[..sound.len() - 1].to_vec()),
            ("gzip", bzimage(b"\x1f\x8b\x08\x00rest")),
            ("not a kernel", bzimage(&legacy_frame(b"0123456789 no elf at all"))),
        ];
        let mut wrong_size = sound.clone();
        let end = wrong_size.len() - 4;
        wrong_size[end] ^= 1;
        cases.push(("wrong size", wrong_size));
        let mut huge_block = sound.clone();
        huge_block[1024 + 16 + 4..1024 + 16 + 8].copy_from_slice(&u32::MAX.to_le_bytes());
        cases.push(("huge block", huge_block));
        let mut huge_payload = sound;
        huge_payload[0x248..0x250].copy_from_slice(&[0xff; 8]);
        cases.push(("huge payload", huge_payload));
        for (name, image) in cases {
            assert!(extract_elf(&image).is_err(), "{name}");
        }
    }
}
