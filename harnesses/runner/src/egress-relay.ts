import { createConnection, createServer, type Server, type Socket } from 'node:net';
import type { HubMessage } from '@holdfast/contracts';
import type { HubPlace } from './hub-place.ts';

/** As many as the hub takes of one pod. */
const MAX_CONNECTIONS = 128;
const END = Buffer.alloc(0);

/** The only ways out of a sandbox: ports on its own loopback that lead to the platform's proxy, and to its model door. */
export function startEgressRelay(port: number, carry: (client: Socket) => void): Server {
  const server = createServer({ allowHalfOpen: true }, carry);
  server.maxConnections = MAX_CONNECTIONS;
  server.on('error', () => undefined);
  return server.listen(port, '127.0.0.1');
}

/** Carries connections to a socket on this machine: the proxy's, or the model door's. */
export const carryToSocket =
  (path: string) =>
  (client: Socket): void => {
    const upstream = createConnection({ path, allowHalfOpen: true });
    client.pipe(upstream).pipe(client);
    for (const [one, other] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      one.on('error', () => other.destroy());
      // What it had sent already still arrives.
      one.on('close', () => other.destroySoon());
    }
  };

/**
 * Carries each connection over a WebSocket of its own: binary messages are its bytes, an empty one ends a direction and
 * leaves the other open. One that closes without it resets the connection.
 */
export const carryToHub =
  (hub: HubPlace, channel: 'egress' | 'door') =>
  (client: Socket): void => {
    const socket = hub.dial();
    let ended = false;
    socket.on('message', (data, isBinary) => {
      if (!isBinary) {
        const message = JSON.parse(String(data as Buffer)) as HubMessage;
        if (message.type === 'challenge') socket.send(JSON.stringify(hub.hello(message.nonce, channel)));
        else if (message.type === 'welcome') begin();
      } else if ((data as Buffer).length === 0) {
        ended = true;
        client.end();
      } else if (!client.write(data as Buffer)) {
        socket.pause();
      }
    });
    socket.on('error', () => undefined);
    socket.on('close', () => {
      if (ended) client.destroySoon();
      else client.resetAndDestroy();
    });
    const begin = (): void => {
      client.on('data', (bytes) => {
        client.pause();
        socket.send(bytes, () => client.resume());
      });
      client.on('end', () => socket.send(END));
    };
    client.on('drain', () => socket.resume());
    client.on('error', () => undefined);
    client.on('close', () => {
      if (client.readableEnded && client.writableFinished) socket.close();
      else socket.terminate();
    });
  };
