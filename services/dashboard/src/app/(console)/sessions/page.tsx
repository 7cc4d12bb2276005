import { SessionsPage } from '../../../components/sessions-page.tsx';

export const metadata = { title: 'Sessions' };

export default function Page() {
  return <SessionsPage />;
}
