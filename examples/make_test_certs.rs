//! Makes the test certificates in `certs/` again, with new keys: `cargo run --example make_test_certs`.
//!
//! `certs/README.md` says what each is for. Nothing here is, or ever was, a real node's key.

use std::error::Error;
use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
    PKCS_ED25519, PKCS_RSA_SHA256, date_time_ymd,
};

/// Under 2.25, the arc of UUIDs, which nobody has to register; no verifier knows this one.
const UNKNOWN_EXTENSION: [u64; 3] = [2, 25, 113_435];
/// DER of an empty SEQUENCE.
const EMPTY_SEQUENCE: [u8; 2] = [0x30, 0x00];

fn main() -> Result<(), Box<dyn Error>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("certs");
    let write = |name: &str, key: &KeyPair, certificates: &str| -> Result<(), Box<dyn Error>> {
        fs::write(dir.join(format!("{name}.pem")), certificates)?;
        fs::write(dir.join(format!("{name}.key.pem")), key.serialize_pem())?;
        Ok(())
    };

    for name in ["good", "other"] {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        write(name, &key, &params(name).self_signed(&key)?.pem())?;
    }

    for (name, algorithm) in [("rsa", &PKCS_RSA_SHA256), ("p256", &PKCS_ECDSA_P256_SHA256)] {
        let key = KeyPair::generate_for(algorithm)?;
        write(name, &key, &params(name).self_signed(&key)?.pem())?;
    }

    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut expired = params("expired");
    expired.not_before = date_time_ymd(2001, 1, 1);
    expired.not_after = date_time_ymd(2002, 1, 1);
    write("expired", &key, &expired.self_signed(&key)?.pem())?;

    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut named = CertificateParams::new(["example.com".to_owned(), "ollana".to_owned()])?;
    named.distinguished_name.push(DnType::CommonName, "good");
    write("named", &key, &named.self_signed(&key)?.pem())?;

    for (name, is_critical) in [("critical-extension", true), ("extension", false)] {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut extended = params(name);
        let mut extension = CustomExtension::from_oid_content(&UNKNOWN_EXTENSION, EMPTY_SEQUENCE.to_vec());
        extension.set_criticality(is_critical);
        extended.custom_extensions.push(extension);
        write(name, &key, &extended.self_signed(&key)?.pem())?;
    }

    let (authority_key, key) = (KeyPair::generate_for(&PKCS_ED25519)?, KeyPair::generate_for(&PKCS_ED25519)?);
    let mut authority = params("authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_pem = authority.self_signed(&authority_key)?.pem();
    let leaf_pem = params("chain").signed_by(&key, &Issuer::new(authority, authority_key))?.pem();
    write("chain", &key, &format!("{leaf_pem}{authority_pem}"))?;
    Ok(())
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
