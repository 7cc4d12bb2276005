import { NewAgentPage } from '../../../../components/agent-page.tsx';

export const metadata = { title: 'New agent' };

export default function Page() {
  return <NewAgentPage />;
}
