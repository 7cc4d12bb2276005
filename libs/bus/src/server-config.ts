import { NATS_PERMISSIONS } from '@holdfast/contracts';

export interface NatsServerSettings {
  readonly host: string;
  readonly port: number;
  readonly storeDir: string;
  /** Where `/healthz` answers, on loopback; none without it. */
  readonly monitorPort?: number;
  /** Password of each service's user (B5). */
  readonly passwords: Readonly<Record<keyof typeof NATS_PERMISSIONS, string>>;
}

const quoted = (text: string): string => JSON.stringify(text);

/** Configuration of nats-server: JetStream, one user per service with just its subjects. Needs ≥ 2.10. */
export function natsServerConfig(settings: NatsServerSettings): string {
  const users = Object.entries(NATS_PERMISSIONS).map(([name, { publish, subscribe }]) => {
    const password = settings.passwords[name as keyof typeof NATS_PERMISSIONS];
    return `    { user: ${quoted(name)}, password: ${quoted(password)}, permissions: {
        publish: { allow: [${publish.map(quoted).join(', ')}] }
        subscribe: { allow: [${subscribe.map(quoted).join(', ')}] }
        allow_responses: { max: 100000, expires: "1h" }
    } }`;
  });
  return `listen: ${quoted(`${settings.host}:${settings.port}`)}
server_name: holdfast
${settings.monitorPort === undefined ? '' : `http: "127.0.0.1:${settings.monitorPort}"\n`}max_payload: 8MB
write_deadline: "10s"
jetstream { store_dir: ${quoted(settings.storeDir)}, max_memory_store: 64MB }
authorization {
  users: [
${users.join('\n')}
  ]
}
`;
}
