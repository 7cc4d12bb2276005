import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { run } from './commands.ts';
import type { Bed } from './settings.ts';

const VALID_DAYS = '3650';

/** A certificate and its key, as files. */
export interface Identity {
  readonly certificate: string;
  readonly key: string;
}

/** The bed's certificate authority, its certificates and the kubeconfigs that carry them; each is made once. */
export class Certificates {
  readonly dir: string;
  readonly authority: string;
  readonly #apiUrl: string;

  private constructor(bed: Bed) {
    this.dir = join(bed.stateDir, 'pki');
    this.authority = join(this.dir, 'ca.crt');
    this.#apiUrl = bed.apiUrl;
  }

  static async open(bed: Bed): Promise<Certificates> {
    const certificates = new Certificates(bed);
    mkdirSync(certificates.dir, { recursive: true, mode: 0o700 });
    const { authority, dir } = certificates;
    // Nothing of the distribution's own defaults.
    writeFileSync(join(dir, 'openssl.cnf'), '[req]\ndistinguished_name = dn\n[dn]\n');
    if (!existsSync(authority))
      await certificates.#sign('/CN=holdfast-testbed', ['basicConstraints=critical,CA:TRUE'], [], {
        certificate: authority,
        key: certificates.authorityKey,
      });
    return certificates;
  }

  get authorityKey(): string {
    return join(this.dir, 'ca.key');
  }

  /** A key pair that signs and checks the tokens of service accounts. */
  async signingKey(): Promise<{ readonly privateKey: string; readonly publicKey: string }> {
    const [privateKey, publicKey] = [join(this.dir, 'service-accounts.key'), join(this.dir, 'service-accounts.pub')];
    if (!existsSync(publicKey)) {
      await run('openssl', ['genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256', '-out', privateKey]);
      await run('openssl', ['pkey', '-in', privateKey, '-pubout', '-out', publicKey]);
    }
    return { privateKey, publicKey };
  }

  /** A certificate for a subject such as `/O=group/CN=user`; with names (`IP:10.87.0.1`, `DNS:localhost`) for a server. */
  async issue(name: string, subject: string, serverNames: readonly string[] = []): Promise<Identity> {
    const identity = { certificate: join(this.dir, `${name}.crt`), key: join(this.dir, `${name}.key`) };
    if (existsSync(identity.certificate)) return identity;
    const extensions = [
      'basicConstraints=critical,CA:FALSE',
      'keyUsage=critical,digitalSignature',
      `extendedKeyUsage=${serverNames.length === 0 ? 'clientAuth' : 'serverAuth'}`,
      ...(serverNames.length === 0 ? [] : [`subjectAltName=${serverNames.join(',')}`]),
    ];
    await this.#sign(subject, extensions, ['-CA', this.authority, '-CAkey', this.authorityKey], identity);
    return identity;
  }

  async #sign(subject: string, extensions: readonly string[], signer: readonly string[], out: Identity): Promise<void> {
    await run('openssl', [
      ...['req', '-x509', '-config', join(this.dir, 'openssl.cnf'), '-days', VALID_DAYS, '-subj', subject],
      ...['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-noenc'],
      ...extensions.flatMap((extension) => ['-addext', extension]),
      ...signer,
      ...['-keyout', out.key, '-out', out.certificate],
    ]);
  }

  /** A kubeconfig for that subject, with everything in it. */
  async kubeconfig(name: string, subject: string, file = join(this.dir, `${name}.kubeconfig`)): Promise<string> {
    if (existsSync(file)) return file;
    const { certificate, key } = await this.issue(name, subject);
    const base64 = (path: string): string => readFileSync(path).toString('base64');
    const config = {
      apiVersion: 'v1',
      kind: 'Config',
      clusters: [
        {
          name: 'testbed',
          cluster: { server: this.#apiUrl, 'certificate-authority-data': base64(this.authority) },
        },
      ],
      users: [{ name, user: { 'client-certificate-data': base64(certificate), 'client-key-data': base64(key) } }],
      contexts: [{ name: 'testbed', context: { cluster: 'testbed', user: name } }],
      'current-context': 'testbed',
    };
    writeFileSync(file, `${JSON.stringify(config, null, 2)}\n`, { mode: 0o600 });
    return file;
  }
}
