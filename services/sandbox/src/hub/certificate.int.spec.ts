import { X509Certificate } from 'node:crypto';
import type { AddressInfo } from 'node:net';
import { connect, createServer } from 'node:tls';
import { describe, expect, it } from '@jest/globals';
import { hubCertificate } from './certificate.ts';

describe('the hub’s certificate', () => {
  it('is the same on every replica, and another for another secret', async () => {
    const [one, same, other] = await Promise.all(['secret', 'secret', 'other'].map(hubCertificate));
    expect(one).toEqual(same);
    expect(one?.cert).not.toBe(other?.cert);
    const { subject, validTo, ca, serialNumber, publicKey } = new X509Certificate(one?.cert ?? '');
    expect([subject, validTo, ca, serialNumber]).toEqual(['CN=holdfast-hub', 'Dec 31 23:59:59 9999 GMT', false, '01']);
    expect(new X509Certificate(one?.cert ?? '').verify(publicKey)).toBe(true);
  });

  it('is pinned: who trusts one secret’s refuses another’s', async () => {
    const [one, other] = await Promise.all(['secret', 'other'].map(hubCertificate));
    const server = createServer({ ...one, minVersion: 'TLSv1.3' }, (socket) => socket.end('in')).on(
      'tlsClientError',
      () => undefined,
    );
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address() as AddressInfo;
    const dial = (ca: string | undefined): Promise<string> =>
      new Promise((resolve) => {
        connect({ host: '127.0.0.1', port, ca, checkServerIdentity: () => undefined })
          .on('data', (data) => resolve(String(data)))
          .on('error', (error: NodeJS.ErrnoException) => resolve(String(error.code)));
      });
    expect(await dial(one?.cert)).toBe('in');
    expect(await dial(other?.cert)).toBe('DEPTH_ZERO_SELF_SIGNED_CERT');
    expect(await dial(undefined)).toBe('DEPTH_ZERO_SELF_SIGNED_CERT');
    server.close();
  });
});
