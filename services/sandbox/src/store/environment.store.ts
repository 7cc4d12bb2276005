import type { CloudConfig, StoredEvent } from '@holdfast/contracts';
import type pg from 'pg';

/** An environment that pods are made from. */
export interface EnvironmentRow {
  readonly environment_id: string;
  readonly workspace_id: string;
  readonly config: CloudConfig;
  readonly retired: boolean;
}

/** Environments as their events say, for what is kept warm without any session. */
export class EnvironmentStore {
  readonly #pool: pg.Pool;

  constructor(pool: pg.Pool) {
    this.#pool = pool;
  }

  /** Takes an environment's newest state in; an older event changes nothing. Null = it needs no sandboxes (any more). */
  async takeIn(event: StoredEvent, environmentId: string, config: CloudConfig | null): Promise<void> {
    await this.#pool.query(
      `insert into sandbox_environments (environment_id, workspace_id, config, retired, position) values ($1, $2, $3, $4, $5)
       on conflict (environment_id) do update set
         config = case when excluded.retired then sandbox_environments.config else excluded.config end,
         retired = excluded.retired, position = excluded.position
       where sandbox_environments.position < excluded.position`,
      [environmentId, event.workspaceId, JSON.stringify(config ?? {}), config === null, event.position],
    );
  }

  /** As it is now; null when it was never heard of. */
  async find(environmentId: string): Promise<EnvironmentRow | null> {
    const { rows } = await this.#pool.query<EnvironmentRow>(
      'select environment_id, workspace_id, config, retired from sandbox_environments where environment_id = $1',
      [environmentId],
    );
    return rows[0] ?? null;
  }

  async all(): Promise<EnvironmentRow[]> {
    const { rows } = await this.#pool.query<EnvironmentRow>(
      'select environment_id, workspace_id, config, retired from sandbox_environments',
    );
    return rows;
  }
}
