import { mkdtempSync, rmSync } from 'node:fs';
import { createServer as createHttpServer, type IncomingMessage, request, type Server } from 'node:http';
import { type AddressInfo, connect, createServer, type Socket, type Server as TcpServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import type { ResolvedNetworking } from '@holdfast/contracts';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { type Decision, EgressProxy } from './egress-proxy.ts';

const PUBLIC = '93.184.215.14';
const limited = (...allowed_hosts: string[]): ResolvedNetworking => ({
  type: 'limited',
  allowed_hosts,
  allow_mcp_servers: false,
  allow_package_managers: false,
});

let web: Server;
let echo: TcpServer;
let folder: string;
let proxy: EgressProxy;
let decisions: Decision[];
let resolved: string[];
let dialled: string[];
/** Names as the spec's resolver knows them. */
let names: Record<string, string[]>;
/** Addresses that nothing answers at. */
const dead = new Set<string>();

const portOf = (server: Server | TcpServer): number => (server.address() as AddressInfo).port;
beforeAll(async () => {
  web = createHttpServer((incoming, response) =>
    response.end(JSON.stringify({ method: incoming.method, url: incoming.url, headers: incoming.headers })),
  );
  echo = createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket));
  for (const server of [web, echo]) await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
});
afterAll(() => {
  web.close();
  echo.close();
});
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-egress-'));
  [decisions, resolved, dialled, names] = [[], [], [], { 'good.example': [PUBLIC] }];
});
afterEach(async () => {
  await proxy.close();
  rmSync(folder, { recursive: true });
});

/** A proxy whose resolver knows {@link names}, and whose public addresses all lead to the servers of this spec. */
async function open(networking: ResolvedNetworking): Promise<void> {
  proxy = new EgressProxy(networking, (decision) => decisions.push(decision), {
    resolve: (host) => {
      resolved.push(host);
      const found = names[host];
      if (host === 'rebind.example') names[host] = ['127.0.0.1'];
      return found === undefined ? Promise.reject(new Error('ENOTFOUND')) : Promise.resolve(found);
    },
    connect: (address, port) => {
      dialled.push(`${address}:${port}`);
      return connect({
        host: '127.0.0.1',
        port: dead.has(address) ? 1 : portOf(port === 80 ? web : echo),
        allowHalfOpen: true,
      });
    },
  });
  await proxy.listen(folder);
}
const socket = (): Socket => connect({ path: join(folder, 'egress.sock'), allowHalfOpen: true });
/** Sends bytes, ends, and reads all that comes back. */
async function raw(bytes: string): Promise<string> {
  const client = socket();
  client.end(bytes);
  return text(client);
}
const tunnel = (authority: string, payload = ''): Promise<string> =>
  raw(`CONNECT ${authority} HTTP/1.1\r\nhost: ${authority}\r\n\r\n${payload}`);
const get = async (url: string, headers: Record<string, string> = {}): Promise<{ status: number; body: string }> => {
  const answer = await new Promise<IncomingMessage>((resolve, reject) => {
    request({ socketPath: join(folder, 'egress.sock'), path: url, headers: { host: 'spoofed.example', ...headers } })
      .on('response', resolve)
      .on('error', reject)
      .end();
  });
  return { status: answer.statusCode ?? 0, body: await text(answer) };
};

describe('the egress proxy', () => {
  it('carries plain http and tunnels, and dials the address that it checked', async () => {
    await open({ type: 'unrestricted' });
    const { status, body } = await get('http://good.example/a?b=c', {
      'proxy-authorization': 'Basic eA==',
      'x-own': 'kept',
    });
    expect(status).toBe(200);
    expect(JSON.parse(body)).toMatchObject({ url: '/a?b=c', headers: { host: 'good.example', 'x-own': 'kept' } });
    expect(body).not.toMatch(/proxy-authorization|spoofed/);
    const large = 'x'.repeat(3_000_000);
    expect(await tunnel('good.example:443', large)).toBe(`HTTP/1.1 200 Connection established\r\n\r\n${large}`);
    expect(dialled).toEqual([`${PUBLIC}:80`, `${PUBLIC}:443`]);
  });

  it('resolves once: what a name says later is not asked', async () => {
    await open({ type: 'unrestricted' });
    names['rebind.example'] = [PUBLIC];
    expect(await tunnel('rebind.example:443', 'x')).toMatch(/200.*x$/s);
    expect(resolved).toEqual(['rebind.example']);
    expect(await tunnel('rebind.example:443', 'x')).toMatch(/403.*not on the public internet/s);
    expect(dialled).toEqual([`${PUBLIC}:443`]);
  });

  it('refuses every name with a private address among its addresses, and tries all of a public one', async () => {
    names = { 'mixed.example': [PUBLIC, '10.0.0.1'], 'two.example': ['198.41.0.4', PUBLIC], 'none.example': [] };
    dead.add('198.41.0.4');
    await open({ type: 'unrestricted' });
    expect(await tunnel('mixed.example:443')).toMatch(/403/);
    expect(await tunnel('none.example:443')).toMatch(/403/);
    expect(await tunnel('unknown.example:443')).toMatch(/403.*cannot be resolved/s);
    expect(dialled).toEqual([]);
    expect(await tunnel('two.example:443', 'x')).toMatch(/200.*x$/s);
    expect(dialled).toEqual(['198.41.0.4:443', `${PUBLIC}:443`]);
  });

  it('refuses addresses in every spelling', async () => {
    await open({ type: 'unrestricted' });
    // As the machine's resolver reads them.
    for (const spelling of ['2130706433', '0x7f.1', '0177.0.0.1', '127.1', '0']) names[spelling] = ['127.0.0.1'];
    for (const host of [
      ...Object.keys(names).filter((name) => name !== 'good.example'),
      ...['127.0.0.1', '10.1.2.3', '169.254.169.254', '100.100.100.200', '192.168.0.1', '0.0.0.0', '224.0.0.1'],
      ...['[::1]', '[::]', '[::ffff:127.0.0.1]', '[::127.0.0.1]', '[::ffff:0:127.0.0.1]', '[64:ff9b::7f00:1]'],
      ...['[fd00:ec2::254]', '[fe80::1]', '[2002:7f00:1::]', '[fec0::1]'],
    ]) {
      expect([host, await tunnel(`${host}:80`)]).toEqual([host, expect.stringMatching(/^HTTP\/1.1 403/)]);
      expect([host, (await get(`http://${host}/`)).status]).toEqual([host, 403]);
    }
    expect(dialled).toEqual([]);
  });

  it('allows the named hosts and nothing that only looks like them', async () => {
    names['sub.wild.example'] = [PUBLIC];
    await open(limited('good.example', '*.wild.example'));
    expect((await get('http://good.example/')).status).toBe(200);
    expect((await get('http://GOOD.example./')).status).toBe(403);
    names['good.example.'] = [PUBLIC];
    expect(await tunnel('good.example.:443', 'x')).toMatch(/200/);
    expect(await tunnel('sub.wild.example:443', 'x')).toMatch(/200/);
    for (const host of ['wild.example', 'evilgood.example', 'good.example.evil.example', PUBLIC])
      expect([host, await tunnel(`${host}:443`)]).toEqual([host, expect.stringMatching(/does not allow/)]);
    expect((await get('http://good.example@evil.example/')).body).toMatch(/does not allow evil.example/);
    expect(decisions.filter(({ allowed }) => !allowed).map(({ host }) => host)).toContain('evil.example');
  });

  it('answers what is no proxy request, and tells each decision once', async () => {
    await open({ type: 'unrestricted' });
    for (const url of ['/local', 'https://good.example/', 'ftp://good.example/', `http://${'a'.repeat(300)}.example/`])
      expect([url, (await get(url)).status]).toEqual([url, 400]);
    for (const authority of [
      'good.example',
      'good.example:0',
      'good.example:99999',
      'a b:1',
      ':80',
      'good.example:80/',
    ])
      expect(await tunnel(authority)).toMatch(/^HTTP\/1.1 (403|400)|^$/);
    const smuggled =
      'POST http://good.example/ HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n';
    expect(await raw(smuggled)).toBe('');
    decisions.length = 0;
    for (let i = 0; i < 3; i++) await get('http://good.example/');
    expect(decisions).toEqual([{ host: 'good.example', port: 80, allowed: true, reason: 'allowed' }]);
  });
});
