import 'reflect-metadata';
import { createPrivateKey, createPublicKey, hkdfSync, webcrypto } from 'node:crypto';
import { BasicConstraintsExtension, X509CertificateGenerator } from '@peculiar/x509';

/** An Ed25519 key in PKCS #8, but for its 32 bytes. */
const PKCS8_ED25519 = Buffer.from('302e020100300506032b657004220420', 'hex');

/**
 * The hub's certificate and key (PEM). Both follow from the secret alone, byte for byte: every replica shows the same
 * certificate, and runners trust exactly this one. It names no host and, to those who pin it, does not run out.
 */
export async function hubCertificate(secret: string): Promise<{ cert: string; key: string }> {
  const seed = hkdfSync('sha256', secret, '', 'holdfast hub certificate', 32);
  const der = Buffer.concat([PKCS8_ED25519, Buffer.from(seed)]);
  const key = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' });
  const spki = createPublicKey(key).export({ format: 'der', type: 'spki' });
  const { subtle } = webcrypto;
  const certificate = await X509CertificateGenerator.createSelfSigned({
    serialNumber: '01',
    name: 'CN=holdfast-hub',
    notBefore: new Date('2020-01-01T00:00:00Z'),
    notAfter: new Date('9999-12-31T23:59:59Z'),
    signingAlgorithm: { name: 'Ed25519' },
    keys: {
      privateKey: await subtle.importKey('pkcs8', der, 'Ed25519', false, ['sign']),
      publicKey: await subtle.importKey('spki', spki, 'Ed25519', true, ['verify']),
    },
    extensions: [new BasicConstraintsExtension(false, undefined, true)],
  });
  return { cert: certificate.toString('pem'), key: key.export({ format: 'pem', type: 'pkcs8' }).toString() };
}
