import { createHash } from 'node:crypto';
import { AppError, credentialHint, credentialKind, type JsonObject, newId, streamOf } from '@holdfast/contracts';
import { createLogPool, derivedEventId, EventLog } from '@holdfast/event-store';
import { createEnvironment } from '../catalogue/environment.decider.ts';

export const DEFAULT_WORKSPACE = 'wrkspc_default';
const DEFAULT_ENVIRONMENT = 'default';

/**
 * The first workspace, its `default` environment and its first API key. Safe to repeat: what exists stays; a new key is
 * added beside the ones that exist.
 */
export async function bootstrap(databaseUrl: string, apiKey: string): Promise<void> {
  if (credentialKind(apiKey) !== 'api_key') {
    throw new AppError(
      'invalid',
      'bootstrap.key',
      'HOLDFAST_API_KEY must be hf_ and 43 characters of A-Z a-z 0-9 _ -.',
    );
  }
  const pool = createLogPool({ connectionString: databaseUrl, applicationName: 'holdfast-bootstrap', max: 2 });
  const log = new EventLog({ pool });
  const metadata = { actor: { type: 'service', id: 'bootstrap' } };
  try {
    const workspace = await pool.query('select 1 from workspaces where id = $1', [DEFAULT_WORKSPACE]);
    if (workspace.rowCount === 0) {
      await log.append({
        appends: [
          {
            streamId: streamOf('workspace', DEFAULT_WORKSPACE),
            workspaceId: DEFAULT_WORKSPACE,
            events: [
              {
                id: derivedEventId('cmd_bootstrap_workspace', 0),
                type: 'workspace.created',
                data: { name: 'Default' },
                metadata,
              },
            ],
          },
        ],
        statements: [
          {
            text: 'insert into workspaces (id, name) values ($1, $2) on conflict do nothing',
            values: [DEFAULT_WORKSPACE, 'Default'],
          },
        ],
      });
    }
    const environments = await pool.query(
      'select 1 from environments where workspace_id = $1 and name = $2 and archived_at is null',
      [DEFAULT_WORKSPACE, DEFAULT_ENVIRONMENT],
    );
    if (environments.rowCount === 0) {
      const environment = createEnvironment(
        newId('environment'),
        { name: DEFAULT_ENVIRONMENT },
        new Date().toISOString(),
      );
      await log.append({
        appends: [
          {
            streamId: streamOf('environment', environment.id),
            workspaceId: DEFAULT_WORKSPACE,
            events: [
              {
                id: derivedEventId(`cmd_${environment.id}`, 0),
                type: 'environment.created',
                data: JSON.parse(JSON.stringify({ environment })) as JsonObject,
                metadata,
              },
            ],
          },
        ],
        statements: [
          {
            text: 'insert into environments (id, workspace_id, name, resource, created_at) values ($1, $2, $3, $4, $5)',
            values: [
              environment.id,
              DEFAULT_WORKSPACE,
              environment.name,
              JSON.stringify(environment),
              environment.created_at,
            ],
          },
        ],
      });
    }
    const hash = createHash('sha256').update(apiKey).digest();
    const keys = await pool.query('select 1 from api_keys where hash = $1', [hash]);
    if (keys.rowCount === 0) {
      const id = newId('apiKey');
      await log.append({
        appends: [
          {
            streamId: streamOf('api_key', id),
            workspaceId: DEFAULT_WORKSPACE,
            events: [
              {
                id: derivedEventId(`cmd_${id}`, 0),
                type: 'api_key.created',
                data: { name: 'bootstrap', kind: 'api_key' },
                metadata,
              },
            ],
          },
        ],
        statements: [
          {
            text: `insert into api_keys (id, workspace_id, name, kind, hash, hint) values ($1, $2, 'bootstrap', 'api_key', $3, $4)`,
            values: [id, DEFAULT_WORKSPACE, hash, credentialHint(apiKey)],
          },
        ],
      });
    }
    await log.close();
  } finally {
    await pool.end();
  }
}
