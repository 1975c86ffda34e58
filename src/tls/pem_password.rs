//! Private keys under a password in PEM's first form (RFC 1423), for `tls.password` and `identity new
//! --encrypt`.
//!
//! The key is derived by one round of MD5 (OpenSSL's `EVP_BytesToKey`), which protects little. The form is
//! here because KES reads and writes such files.

use crate::secret;
use aes::{Aes128, Aes192, Aes256};
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit, block_padding::Pkcs7};
use des::{Des, TdesEde3};
use md5::{Digest, Md5};
use rustls::pki_types::PrivateKeyDer;
use zeroize::Zeroizing;

/// The cipher of keys that KES writes.
const KES_CIPHER: &str = "AES-256-CBC";
/// The PEM label of a PKCS#8 key.
const PKCS8_LABEL: &str = "PRIVATE KEY";

/// Whether the first private key of a PEM text is under a password.
pub fn is_encrypted(pem_text: &str) -> bool {
    key_block(pem_text).is_ok_and(|block| info(&block).is_some())
}

/// The first private key of a PEM text. The password opens a key under a password, and is ignored otherwise.
///
/// # Errors
/// A text for people, when the text has no private key, the password is missing or wrong, or the cipher or
/// kind of key is unknown.
pub fn decrypt(pem_text: &str, password: &str) -> Result<PrivateKeyDer<'static>, String> {
    let block = key_block(pem_text)?;
    let der = match info(&block) {
        None => Zeroizing::new(block.contents().to_vec()),
        Some(_) if password.is_empty() => {
            return Err("https: private key is encrypted: password required".to_owned());
        }
        Some(info) => open(&info, block.contents(), password)?,
    };
    typed(block.tag(), &der)
}

/// The PEM text of a PKCS#8 key under a password, with AES-256-CBC.
pub fn encrypt(der: &[u8], password: &str) -> String {
    let mut iv = [0; 16];
    secret::fill_random(&mut iv);
    let key = derive(password, &iv[..8], 32);
    let cipher = cbc::Encryptor::<Aes256>::new_from_slices(&key, &iv).expect("the lengths must be AES-256's");
    let sealed = cipher.encrypt_padded_vec::<Pkcs7>(der);
    let mut block = pem::Pem::new(PKCS8_LABEL, sealed);
    let headers = [("Proc-Type", "4,ENCRYPTED".to_owned()), ("DEK-Info", dek_info(&iv))];
    for (name, value) in headers {
        block.headers_mut().add(name, &value).expect("our own headers must be valid");
    }
    pem::encode_config(&block, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}

fn dek_info(iv: &[u8; 16]) -> String {
    format!("{KES_CIPHER},{}", secret::hex(iv).to_ascii_uppercase())
}

/// The first private key of a text, which may have certificates as well.
fn key_block(pem_text: &str) -> Result<pem::Pem, String> {
    let blocks = pem::parse_many(pem_text).map_err(|_| "https: no valid PEM data".to_owned())?;
    if blocks.is_empty() {
        return Err("https: no valid PEM data".to_owned());
    }
    let key =
        blocks.into_iter().find(|block| block.tag() == PKCS8_LABEL || block.tag().ends_with(" PRIVATE KEY"));
    key.ok_or_else(|| "https: no PEM-encoded private key found".to_owned())
}

/// The header `DEK-Info`: the cipher's name and the IV.
fn info(block: &pem::Pem) -> Option<String> {
    block.headers().get("DEK-Info").map(str::to_owned)
}

fn open(info: &str, sealed: &[u8], password: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let unreadable =
        || "https: the private key's encryption cannot be read: DEK-Info is malformed".to_owned();
    let (cipher, iv) = info.split_once(',').ok_or_else(unreadable)?;
    let iv = unhex(iv.trim()).filter(|iv| iv.len() >= 8).ok_or_else(unreadable)?;
    let key = |length| derive(password, &iv[..8], length);
    let opened = match cipher.trim() {
        "AES-128-CBC" => open_with::<Aes128>(&key(16), &iv, sealed),
        "AES-192-CBC" => open_with::<Aes192>(&key(24), &iv, sealed),
        KES_CIPHER => open_with::<Aes256>(&key(32), &iv, sealed),
        "DES-EDE3-CBC" => open_with::<TdesEde3>(&key(24), &iv, sealed),
        "DES-CBC" => open_with::<Des>(&key(8), &iv, sealed),
        other => return Err(format!("https: the private key is encrypted with {other}, which is not known")),
    };
    opened.ok_or_else(|| "x509: decryption password incorrect".to_owned())
}

fn open_with<C>(key: &[u8], iv: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>>
where
    C: cbc::cipher::BlockCipherDecrypt + cbc::cipher::KeyInit,
    cbc::Decryptor<C>: KeyIvInit + BlockModeDecrypt,
{
    let cipher = cbc::Decryptor::<C>::new_from_slices(key, iv).ok()?;
    cipher.decrypt_padded_vec::<Pkcs7>(sealed).ok().map(Zeroizing::new)
}

/// OpenSSL's `EVP_BytesToKey`: blocks of MD5 over the last block, the password and the salt, up to `length`
/// bytes.
fn derive(password: &str, salt: &[u8], length: usize) -> Zeroizing<Vec<u8>> {
    let mut key = Zeroizing::new(Vec::with_capacity(length + 16));
    let mut last = Zeroizing::new(Vec::new());
    while key.len() < length {
        let mut digest = Md5::new();
        digest.update(&*last);
        digest.update(password.as_bytes());
        digest.update(salt);
        *last = digest.finalize().to_vec();
        key.extend_from_slice(&last);
    }
    key.truncate(length);
    key
}

fn typed(label: &str, der: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    match label {
        PKCS8_LABEL => Ok(PrivateKeyDer::Pkcs8(der.to_vec().into())),
        "RSA PRIVATE KEY" => Ok(PrivateKeyDer::Pkcs1(der.to_vec().into())),
        "EC PRIVATE KEY" => Ok(PrivateKeyDer::Sec1(der.to_vec().into())),
        other => Err(format!("https: a private key of the kind {other} is not known")),
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_under_a_password_and_comes_back_with_it_alone() {
        let der: Vec<u8> = (0..48).collect();
        let text = encrypt(&der, "open sesame");
        assert!(is_encrypted(&text), "{text}");
        let opened = decrypt(&text, "open sesame").expect("the password must open it");
        assert_eq!(opened.secret_der(), der);
        assert!(decrypt(&text, "").is_err());
        assert!(decrypt(&text, "wrong").map_or(true, |other| other.secret_der() != der));
    }

    /// Made with `openssl pkcs8 -in key.pem -traditional | openssl ec -aes128 -passout pass:secret` and its
    /// like.
    #[test]
    fn what_openssl_wrote_is_read() {
        let text = include_str!("../../tests/vectors/encrypted-ec-key.pem");
        assert!(is_encrypted(text));
        assert!(matches!(decrypt(text, "secret"), Ok(PrivateKeyDer::Sec1(_))));
        assert_eq!(decrypt("nothing", "x").err().as_deref(), Some("https: no valid PEM data"));
    }
}
