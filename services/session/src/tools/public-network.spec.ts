import { createServer } from 'node:http';
import { type AddressInfo, createServer as createTcpServer, type Server } from 'node:net';
import { afterAll, beforeAll, expect, it } from '@jest/globals';
import { request } from 'undici';
import { PublicNetwork, privateAllowList, refusalIn } from './public-network.ts';

let server: Server;
let port = 0;
let connections = 0;
const networks: PublicNetwork[] = [];
beforeAll(async () => {
  server = createServer((_request, response) => response.end('in')).on('connection', () => (connections += 1));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  port = (server.address() as AddressInfo).port;
});
afterAll(async () => {
  for (const network of networks) await network.close();
  server.close();
});
const network = (allow = ''): PublicNetwork => {
  const made = new PublicNetwork(privateAllowList(allow));
  networks.push(made);
  return made;
};
const get = async (url: string, { dispatcher }: PublicNetwork): Promise<string> =>
  (await request(url, { dispatcher })).body.text();

it('reaches nothing that is not public, whatever it is called', async () => {
  const before = connections;
  for (const host of [
    '127.0.0.1',
    'localhost',
    '[::1]',
    '[::ffff:127.0.0.1]',
    '10.1.2.3',
    '169.254.169.254',
    '0.0.0.0',
    '2130706433',
  ]) {
    const refused = await get(`http://${host}:${port}/`, network()).catch((error: unknown) => refusalIn(error));
    expect(refused).toMatchObject({ code: 'network.refused', kind: 'forbidden' });
  }
  expect(connections).toBe(before);
  const unknown = get('http://no-such-host.invalid/', network()).catch((error: unknown) => refusalIn(error));
  expect(await unknown).toMatchObject({ code: 'network.unresolved' });
});

it('reaches the one host and port that the operator opens', async () => {
  const open = network(` localhost:${port} ,`);
  expect(await get(`http://localhost:${port}/`, open)).toBe('in');
  await expect(get(`http://127.0.0.1:${port}/`, open)).rejects.toThrow('not on the public internet');
  await expect(get(`http://localhost:${port + 1}/`, open)).rejects.toThrow('not on the public internet');
});

it('says by name, not by address, whom it wants where it speaks TLS', async () => {
  const hello = new Promise<string>((resolve) => {
    const tls = createTcpServer((socket) => {
      socket.once('data', (bytes) => {
        resolve(bytes.toString('latin1'));
        socket.destroy();
        tls.close();
      });
    });
    tls.listen(0, '127.0.0.1', () => {
      const at = `localhost:${(tls.address() as AddressInfo).port}`;
      get(`https://${at}/`, network(at)).catch(() => undefined);
    });
  });
  expect(await hello).toContain('localhost');
});

it('takes http and https alone, and no credentials', () => {
  for (const url of [
    'ftp://example.com/',
    'file:///etc/passwd',
    'https://me@example.com/',
    'https://:secret@example.com/',
  ])
    expect(() => network().requireUrl(new URL(url))).toThrow(expect.objectContaining({ code: 'network.refused' }));
  expect(() => network().requireUrl(new URL('https://example.com/'))).not.toThrow();
});
