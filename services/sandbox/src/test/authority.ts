import 'reflect-metadata';
import { KeyObject, webcrypto } from 'node:crypto';
import { BasicConstraintsExtension, X509CertificateGenerator } from '@peculiar/x509';

const pem = (key: webcrypto.CryptoKey): string =>
  KeyObject.from(key).export({ format: 'pem', type: 'pkcs8' }).toString();
const newKeys = async (): Promise<webcrypto.CryptoKeyPair> =>
  (await webcrypto.subtle.generateKey('Ed25519', true, ['sign', 'verify'])) as webcrypto.CryptoKeyPair;
const span = { notBefore: new Date('2020-01-01T00:00:00Z'), notAfter: new Date('2999-01-01T00:00:00Z') };

/** A certificate authority (PEM), and what it signs. */
export async function certificateAuthority() {
  const keys = await newKeys();
  const authority = await X509CertificateGenerator.createSelfSigned({
    ...{ ...span, name: 'CN=authority', signingAlgorithm: { name: 'Ed25519' }, keys },
    extensions: [new BasicConstraintsExtension(true, undefined, true)],
  });
  return {
    cert: authority.toString('pem'),
    sign: async (name: string): Promise<{ cert: string; key: string }> => {
      const { privateKey, publicKey } = await newKeys();
      const certificate = await X509CertificateGenerator.create({
        ...{ ...span, subject: `CN=${name}`, issuer: authority.subject, publicKey },
        ...{ signingKey: keys.privateKey, signingAlgorithm: { name: 'Ed25519' } },
      });
      return { cert: certificate.toString('pem'), key: pem(privateKey) };
    },
  };
}
